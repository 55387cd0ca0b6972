//! `/v1/admin-panel/blocks`: the addresses that may not guess at present.
//!
//! Owns these paths and the form of a block.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_of, admin};
use super::shapes::{Listed, Time};
use super::side_shapes::PageParams;
use crate::accounts::Accounts;
use crate::accounts::blocks::{self, BlockedAddress, Port};
use crate::actors::audit::{Action, Record, Target};
use crate::clock::UnixMillis;
use crate::domain::addresses::{parse_network, unmap};
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(lift))
}

#[derive(Serialize, ToSchema)]
struct BlockShape {
    /// An IPv6 address counts with all of its /64.
    #[schema(example = "203.0.113.9")]
    address: String,
    /// `public` or `side`: where the address may not guess.
    #[schema(example = "public")]
    port: &'static str,
    /// Wrong attempts that led to the block.
    failures: u32,
    /// `credentials`, `passwords`, `codes`, `mailed links`, `login factors`.
    guesses: Vec<&'static str>,
    until: Time,
}

impl From<&(BlockedAddress, UnixMillis)> for BlockShape {
    fn from((block, until): &(BlockedAddress, UnixMillis)) -> Self {
        Self {
            address: blocks::shown(block.address),
            port: block.port.as_str(),
            failures: block.failures,
            guesses: block.guesses.clone(),
            until: (*until).into(),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct BlocksLifted {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    entries: Vec<BlockShape>,
}

/// The addresses that are blocked for guessing, those whose block ends last first.
#[utoipa::path(get, path = "/v1/admin-panel/blocks", tag = "addresses", params(PageParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<BlockShape>)))]
async fn list(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    render::ok(Listed::of(side.accounts.blocked_addresses(page, page_size), |block| BlockShape::from(&block)))
}

/// Lets an address try again; its count begins anew.
#[utoipa::path(delete, path = "/v1/admin-panel/blocks/{address}", tag = "addresses", security(("staff" = ["admin"])),
    params(("port" = Option<String>, Query, description = "`public` or `side`; both if left out")),
    responses((status = 200, body = BlocksLifted)))]
async fn lift(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let wrong = || Reject::Invalid(vec!["address: must be an address such as 203.0.113.9 or 2001:db8::7".into()]);
    let address = parse_address(call.part("address")).ok_or_else(wrong)?;
    let port = call.query_parsed("port", "must be \"public\" or \"side\"", Port::parse)?;
    let shown = blocks::shown(address);
    let record = act_of(&by, &call, Action::AddressUnblocked).on(Target::new("address", None, Some(&shown)));
    let act = move |accounts: Arc<Accounts>| async move { accounts.lift_blocks(address, port) };
    let tell = |lifted: &Vec<(BlockedAddress, UnixMillis)>, record: Record| {
        let ports: Vec<&str> = lifted.iter().map(|(block, _)| block.port.as_str()).collect();
        record.with("ports", ports.join(", "))
    };
    let lifted = side.accounts.audited(record, act, tell).await?;
    tracing::info!(address = shown, by = %by.username, "blocks of an address were lifted");
    let entries = lifted.iter().map(BlockShape::from).collect();
    render::ok(BlocksLifted { success: true, message: "The address may try again", entries })
}

/// An address, or the network that a list shows instead of it.
fn parse_address(text: &str) -> Option<IpAddr> {
    let network = parse_network(text)?;
    let one = text.trim().parse::<IpAddr>().ok().map(unmap);
    one.or_else(|| matches!(network, ipnet::IpNet::V6(v6) if v6.prefix_len() == 64).then(|| network.addr()))
}
