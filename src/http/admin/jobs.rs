//! Jobs that take as long as the outbox is large.
//!
//! | path | does |
//! |---|---|
//! | `POST /admin/outbox/verify` | reads and checks everything; answers with progress lines, the last one is the result |
//! | `POST /admin/outbox/salvage?give_up=false` | recovers records from the quarantine; answers the same way |
//! | `POST /admin/outbox/export` | begins an export: the drain releases all records |
//! | `GET /admin/outbox/export/{id}/page` | the next lines, with their `X-Export-Page`; 202: not yet; 204: no more |
//! | `POST /admin/outbox/export/{id}/confirm` | the page is durable elsewhere |
//! | `DELETE /admin/outbox/export/{id}` | ends the export: the drain resumes |
//! | `POST /admin/outbox/import?import=…&first=1` | imports lines of an export; `first` numbers the first one, `last=true` ends it |
//!
//! A client that disconnects ends its job; an export waits some time for its client.

use std::sync::Arc;

use axum::body::{Body as Stream, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Admin, AdminState, ErrorBody, Fault, JsonBody, JsonResult, Number, QueryArgs, RequestActor, chain,
};
use crate::admin::{
    Confirmed, ExportAsked, ExportError, ExportState, ImportPart, Imported, JobLine, NextPage, PageNumber,
    SalvageAsked, verify,
};
use crate::outbox::{AppendError, Chunk, ExportId, TransferError};

/// Lines of an import: several hundred, or one of the longest possible record, escaped.
const IMPORT_BYTES: usize = 64 << 20;
const LINES: &str = "application/x-ndjson";
/// The page's number.
static EXPORT_PAGE: HeaderName = HeaderName::from_static("x-export-page");

/// The paths whose requests carry neither query nor body.
pub(super) fn with_nothing() -> Router<Arc<Admin>> {
    Router::new()
        .route("/admin/outbox/verify", post(verify_all))
        .route("/admin/outbox/export/{id}", delete(end_export))
        .route("/admin/outbox/export/{id}/page", get(export_page))
}

pub(super) fn with_query() -> Router<Arc<Admin>> {
    Router::new()
        .route("/admin/outbox/salvage", post(salvage_all))
        .route("/admin/outbox/export", post(begin_export))
}

pub(super) fn with_body() -> Router<Arc<Admin>> {
    Router::new().route("/admin/outbox/export/{id}/confirm", post(confirm_page))
}

pub(super) fn with_both() -> Router<Arc<Admin>> {
    Router::new().route("/admin/outbox/import", post(import).layer(DefaultBodyLimit::max(IMPORT_BYTES)))
}

impl From<ExportError> for Fault {
    fn from(error: ExportError) -> Self {
        let text = chain(&error);
        match error {
            ExportError::Busy => Self::Request(StatusCode::CONFLICT, text),
            ExportError::Gone => Self::Request(StatusCode::GONE, text),
            ExportError::Page => Self::Request(StatusCode::UNPROCESSABLE_ENTITY, text),
            ExportError::Transfer(_) => Self::Failed(text),
        }
    }
}

impl From<TransferError> for Fault {
    fn from(error: TransferError) -> Self {
        let text = chain(&error);
        match error {
            TransferError::Line { .. } => Self::Request(StatusCode::UNPROCESSABLE_ENTITY, text),
            TransferError::Known { .. } => Self::Request(StatusCode::CONFLICT, text),
            TransferError::Append(AppendError::Full(_)) => {
                Self::Request(StatusCode::INSUFFICIENT_STORAGE, text)
            }
            _ => Self::Failed(text),
        }
    }
}

/// Streams lines of JSON as they come. The turn is held until the stream ends.
fn lines<T: Serialize + 'static>(
    admin: &Admin,
    job: impl FnOnce() -> stream::BoxStream<'static, JobLine<T>>,
) -> Response {
    let Some(turn) = admin.operator.turn() else {
        let text = "another verify or salvage job is running".to_owned();
        return Fault::Request(StatusCode::CONFLICT, text).into_response();
    };
    let lines = job().map(move |line| {
        let _held = &turn;
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(text))
    });
    ([(header::CONTENT_TYPE, LINES)], Stream::from_stream(lines)).into_response()
}

/// Verifies all waiting records and dead letters while the agent works.
#[utoipa::path(
    post,
    path = "/admin/outbox/verify",
    tag = "outbox",
    responses(
        (status = 200, description = "Progress lines; the last one is the result", body = String, content_type = LINES),
        (status = 409, description = "Another verify or salvage job is running", body = ErrorBody),
    )
)]
pub(in crate::http) async fn verify_all(State(admin): AdminState) -> Response {
    lines(&admin, || verify(&admin.operator.outbox).boxed())
}

/// Recovers readable records from the quarantine.
#[utoipa::path(
    post,
    path = "/admin/outbox/salvage",
    tag = "outbox",
    params(SalvageAsked),
    responses(
        (status = 200, description = "Progress lines; the last one is the result", body = String, content_type = LINES),
        (status = 409, description = "Another verify or salvage job is running", body = ErrorBody),
    )
)]
pub(in crate::http) async fn salvage_all(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    QueryArgs(asked): QueryArgs<SalvageAsked>,
) -> Response {
    lines(&admin, || admin.operator.salvage(by, asked).boxed())
}

/// Starts an export: the drain stops sending and releases all records.
#[utoipa::path(
    post,
    path = "/admin/outbox/export",
    tag = "outbox",
    params(ExportAsked),
    responses(
        (status = 200, description = "Started", body = ExportState),
        (status = 409, description = "Another export is running", body = ErrorBody),
    )
)]
pub(in crate::http) async fn begin_export(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    QueryArgs(asked): QueryArgs<ExportAsked>,
) -> JsonResult<ExportState> {
    Ok(Json(admin.operator.exports.begin(&by, asked).await?))
}

/// The export's next unconfirmed page.
#[utoipa::path(
    get,
    path = "/admin/outbox/export/{id}/page",
    tag = "outbox",
    params(("id" = Uuid, Path, description = "The export")),
    responses(
        (status = 200, description = "The page's lines; `X-Export-Page` is its number", body = String, content_type = LINES),
        (status = 202, description = "Requests are still in flight: ask again", body = ExportState),
        (status = 204, description = "No more pages"),
        (status = 410, description = "The export has ended or does not exist", body = ErrorBody),
    )
)]
pub(in crate::http) async fn export_page(
    State(admin): AdminState,
    Number(id): Number<Uuid>,
) -> Result<Response, Fault> {
    Ok(match admin.operator.exports.page(id).await? {
        NextPage::NotYet(state) => (StatusCode::ACCEPTED, Json(state)).into_response(),
        NextPage::Lines { number, text } => {
            let headers =
                [(header::CONTENT_TYPE, LINES.to_owned()), (EXPORT_PAGE.clone(), number.to_string())];
            (headers, text).into_response()
        }
        NextPage::End => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Confirms a page: the client has it on disk, and its records leave this outbox.
#[utoipa::path(
    post,
    path = "/admin/outbox/export/{id}/confirm",
    tag = "outbox",
    params(("id" = Uuid, Path, description = "The export")),
    request_body = PageNumber,
    responses(
        (status = 200, description = "The totals exported so far", body = Confirmed),
        (status = 410, description = "The export has ended or does not exist", body = ErrorBody),
        (status = 422, description = "This page was never served", body = ErrorBody),
    )
)]
pub(in crate::http) async fn confirm_page(
    State(admin): AdminState,
    Number(id): Number<Uuid>,
    JsonBody(asked): JsonBody<PageNumber>,
) -> JsonResult<Confirmed> {
    Ok(Json(admin.operator.exports.confirm(id, asked.page).await?))
}

/// Ends an export: sending resumes.
#[utoipa::path(
    delete,
    path = "/admin/outbox/export/{id}",
    tag = "outbox",
    params(("id" = Uuid, Path, description = "The export")),
    responses(
        (status = 200, description = "The totals exported", body = Confirmed),
        (status = 410, description = "The export has ended or does not exist", body = ErrorBody),
    )
)]
pub(in crate::http) async fn end_export(
    State(admin): AdminState,
    Number(id): Number<Uuid>,
) -> JsonResult<Confirmed> {
    Ok(Json(admin.operator.exports.end(id).await?))
}

/// The position of the lines in their file.
#[derive(Debug, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ImportPosition {
    /// The import's id: a UUID chosen by the client, the same for all lines of a file.
    import: Uuid,
    /// The number of the first line, from 1.
    first: u64,
    /// Whether these are the last lines of the file.
    #[serde(default)]
    last: bool,
    /// The ids of the exports in the file, in hexadecimal, separated by commas; known ones are refused. They are sent
    /// once, with the first lines; a very long list starts in requests without lines.
    #[serde(default)]
    exports: String,
    /// Imports a file again that was imported before.
    #[serde(default)]
    again: bool,
}

/// Imports lines of an export. The client first checks that the file is complete, which its last line says.
#[utoipa::path(
    post,
    path = "/admin/outbox/import",
    tag = "outbox",
    params(ImportPosition),
    request_body(content = String, content_type = LINES),
    responses(
        (status = 200, description = "The lines are durable", body = Imported),
        (status = 409, description = "Another import is running, or the file was imported before", body = ErrorBody),
        (status = 422, description = "A line is invalid; none was imported", body = ErrorBody),
        (status = 507, description = "The outbox is full", body = ErrorBody),
    )
)]
pub(in crate::http) async fn import(
    State(admin): AdminState,
    RequestActor(by): RequestActor,
    QueryArgs(place): QueryArgs<ImportPosition>,
    text: String,
) -> JsonResult<Imported> {
    let ImportPosition { import, first, last: is_last, exports, again } = place;
    let ids = exports.split(',').filter(|id| !id.is_empty()).map(|id| ExportId::from_str_radix(id, 16));
    let exports = ids.collect::<Result<Vec<_>, _>>().map_err(|_| {
        Fault::Request(StatusCode::BAD_REQUEST, "exports: the id must be 32 hexadecimal digits".to_owned())
    })?;
    let part = ImportPart { import, chunk: Chunk { first, text }, is_last, exports, again };
    let imported = admin.operator.imports.take_in(&by, part).await?;
    let busy = || Fault::Request(StatusCode::CONFLICT, "another import is running".to_owned());
    imported.map(Json).ok_or_else(busy)
}
