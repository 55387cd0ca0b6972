//! Callers that an app elsewhere asks about, and the conversations it hands in.
//!
//! Owns what of a judged caller the local API gets to see. Judging and charging are the gateway's; never sees a credential.

use std::net::IpAddr;
use std::sync::Arc;

use super::Accounts;
use crate::actors::writer::ConversationEntry;
use crate::domain::ids::RequestId;
use crate::domain::meters::{MeterName, Micro};
use crate::domain::user::Standing;

/// A caller whose key was looked at, and who can pay.
#[derive(Clone, Debug)]
pub struct Checked {
    pub standing: Arc<Standing>,
    /// What is left on the meters that were charged.
    pub left: Vec<(MeterName, Micro)>,
    /// How much of each text the journal keeps; `None` when it keeps nothing of this user.
    pub journal_bytes: Option<usize>,
}

/// A conversation that was held elsewhere.
#[derive(Debug)]
pub struct Conversation {
    pub model: String,
    /// JSON.
    pub messages: String,
    pub response: String,
    pub research: bool,
    pub r_type: Option<String>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub processing_time_ms: u64,
}

impl Accounts {
    /// Hands a conversation to the journal; waits for room there as long as the config says. True when it is kept, false
    /// when this user's conversations are not.
    pub async fn log_conversation(
        &self,
        checked: &Checked,
        conversation: &Conversation,
        address: IpAddr,
        request: Option<RequestId>,
    ) -> bool {
        let Some(limit) = checked.journal_bytes else { return false };
        let Conversation { messages, response, .. } = conversation;
        let (request_text, response_text) = (cut(messages.as_bytes(), limit), cut(response.as_bytes(), limit));
        let truncated = request_text.len() < messages.len() || response_text.len() < response.len();
        let standing = &checked.standing;
        let parked = self.journal.emit_or_wait(&ConversationEntry {
            user_id: standing.id.0,
            username: &standing.username,
            email: &standing.email,
            model: &conversation.model,
            route: "/v1/auth/log-message",
            request: request_text,
            request_is_json: false,
            response: response_text,
            research_enabled: conversation.research,
            r_type: conversation.r_type.as_deref(),
            tokens_used: conversation.input_tokens.saturating_add(conversation.output_tokens),
            input_tokens: conversation.input_tokens,
            output_tokens: conversation.output_tokens,
            processing_time_ms: conversation.processing_time_ms,
            ip_address: address,
            timestamp_ms: self.clock.now().0,
            request_id: request.as_ref().map_or("", RequestId::as_str),
            status: 200,
            truncated,
            outcome: "logged",
        });
        if let Some(parked) = parked {
            parked.wait().await;
        }
        true
    }
}

fn cut(text: &[u8], limit: usize) -> &[u8] {
    &text[..text.len().min(limit)]
}
