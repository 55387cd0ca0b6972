//! Which of the known names somebody probably meant.

/// As much of a name as is compared: the work grows with the product of both lengths.
const MAX_BYTES: usize = 64;

/// The nearest of `known` to a name that is none of them; the first of equals.
pub fn of<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|known| edit_distance(unknown, known))
}

fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(MAX_BYTES)], &b.as_bytes()[..b.len().min(MAX_BYTES)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_changes() {
        let known = ["name", "scopes", "models", "cidrs", "per_minute", "expires_at"];
        let nearest = |name: &str| of(name, known.into_iter());
        assert_eq!(nearest("cidr"), Some("cidrs"));
        assert_eq!(nearest("scope"), Some("scopes"));
        assert_eq!(nearest("expire_at"), Some("expires_at"));
        assert_eq!(nearest(&"x".repeat(100_000)), nearest(&"x".repeat(MAX_BYTES)), "no longer than it takes");
        assert_eq!(of("x", std::iter::empty()), None);
    }
}
