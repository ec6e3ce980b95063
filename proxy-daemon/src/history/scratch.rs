//! Rows as filters look at them: one attempt that is filled again and again.
use std::sync::Arc;

use super::{
    chunk::{At, Chunk, Row},
    store::Heads,
};
use crate::{
    flow::{
        Attempt, CallId, Complaint, ConnectionId, Content, Evidence, Headers, Injected, Link, Moment, Operation,
        Request, Response, Wait,
        filter::{Filter, View},
    },
    process::{Facts, Process, ProcessKey},
};

#[derive(Debug)]
pub(super) struct Scratch {
    attempt: Attempt,
    /// The texts of one chunk, as they were wanted so far.
    texts: Vec<Option<Arc<str>>>,
    /// That chunk's first attempt.
    chunk: u64,
    nothing: Arc<str>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let nothing: Arc<str> = Arc::from("");
        let process = Process::new(ProcessKey { pid: 0, start_ticks: 0 }, 0, 0, Facts::default());
        let request = Request {
            method: Arc::clone(&nothing),
            authority: Arc::clone(&nothing),
            target: Arc::clone(&nothing),
            headers: Headers::default(),
        };
        let link = Link { call: CallId(0), number: 1, max: None, evidence: Evidence::Alone, waited: None };
        let mut attempt = Attempt::new(Arc::new(process), request, link, Moment::default());
        // Bodies are never kept: what a filter says of them is not known.
        (attempt.request_content, attempt.response_content) = (Content::Beyond, Content::Beyond);
        Self { attempt, texts: Vec::new(), chunk: 0, nothing }
    }

    /// What the filter says of a row of the chunk that begins with `start`;
    /// `None` where that is not known any more.
    pub(super) fn judge(
        &mut self,
        filter: &Filter,
        (start, chunk): (u64, &Chunk),
        row: &Row,
        heads: Option<&Heads>,
    ) -> Option<bool> {
        self.fill((start, chunk), row, heads);
        match heads {
            Some(_) => filter.judge(&View::new(&self.attempt)),
            None => filter.judge(&View::without_heads(&self.attempt)),
        }
    }

    fn fill(&mut self, (start, chunk): (u64, &Chunk), row: &Row, heads: Option<&Heads>) {
        if self.chunk != start {
            self.chunk = start;
            self.texts.clear();
        }
        // The chunk that is being filled has more of them each time.
        self.texts.resize(chunk.texts().max(self.texts.len()), None);
        let method = self.shared(chunk, row.method);
        let authority = self.shared(chunk, row.authority);
        let target = self.once(chunk, row.target);
        let operation =
            Operation { service: self.optional(chunk, row.service), name: self.optional(chunk, row.operation) };
        let rule = self.optional(chunk, row.rule);
        let code = self.optional(chunk, row.code);
        let it = &mut self.attempt;
        if let Some(process) = chunk.process(row).filter(|process| !Arc::ptr_eq(process, &it.process)) {
            it.process = Arc::clone(process);
        }
        (it.connection, it.protocol) = (ConnectionId(row.connection), row.protocol);
        (it.client, it.origin) = (chunk.client(row), chunk.origin(row));
        (it.started, it.ended) = (Moment(row.started), Some(Moment(row.ended)));
        let waited = row.wait().map(|wait| {
            let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            let from = Moment(row.started.saturating_sub(nanos));
            Wait { from, to: Moment(row.started), injected: row.waited_for_rule() }
        });
        it.link = Link { call: CallId(row.call), number: row.number, max: row.max(), evidence: row.evidence, waited };
        let fields = |kind: At, upgrade: At| -> Headers {
            let fields = [("content-type", chunk.text(kind)), ("upgrade", chunk.text(upgrade))];
            fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        };
        it.request = Request {
            method,
            authority,
            target,
            headers: match heads {
                Some(heads) => heads.shown().request.clone(),
                None => fields(row.request_type, row.upgrade),
            },
        };
        it.response = row.status().map(|status| Response {
            status,
            // No filter looks at it.
            reason: String::new(),
            headers: match heads {
                Some(heads) => heads.shown().response.clone().unwrap_or_default(),
                None => fields(row.response_type, At::NONE),
            },
        });
        it.operation = operation;
        it.injected = rule.map(|rule| Injected { status: row.told(), abort: chunk.abort(row), rule });
        it.failure = row.failure;
        it.complaint = Complaint { code, wait: row.asked() };
        (it.held, it.sent, it.received) = (row.held(), row.sent, row.received);
    }

    /// A text that other rows are likely to have too.
    fn shared(&mut self, chunk: &Chunk, at: At) -> Arc<str> {
        self.optional(chunk, at).unwrap_or_else(|| Arc::clone(&self.nothing))
    }

    fn optional(&mut self, chunk: &Chunk, at: At) -> Option<Arc<str>> {
        let kept = self.texts.get_mut(at.index()?)?;
        if kept.is_none() {
            *kept = chunk.text(at).map(Arc::from);
        }
        kept.clone()
    }

    fn once(&self, chunk: &Chunk, at: At) -> Arc<str> {
        chunk.text(at).map_or_else(|| Arc::clone(&self.nothing), Arc::from)
    }
}
