//! Tasks that are done without a trainer: the model that came goes back.

use std::time::Instant;

use bytes::Bytes;
use firesteel_base::{Failure, FailureCode, Phase, limits};
use firesteel_store::ModelObject;
use firesteel_wire::control::{Key, Object, TaskState, Update, to_server};
use firesteel_wire::spec::{Mode, Transfer};

use crate::AgentError;
use crate::agent::{Agent, filtered, offer_of, sentence};

/// A model of one number, for a first round that is to make one.
const MODEL: &[u8] = b"\x38\0\0\0\0\0\0\0\
    {\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  \0\0\0\0";

impl Agent {
    /// Whether tasks of this job need no trainer.
    pub(crate) fn is_noop(&self) -> bool {
        self.spec.trainer.mode == Mode::Noop
    }

    /// Answers the task in hand once its model is here.
    pub(crate) async fn answer_at_once(&mut self) -> Result<(), AgentError> {
        let Some(task) = self
            .task
            .as_mut()
            .filter(|task| task.arriving.is_none() && task.delivered.is_none())
        else {
            return Ok(());
        };
        let begun = Instant::now();
        task.delivered = Some(begun);
        let key = task.key.clone();
        let (stored, inline) = (
            task.model.clone(),
            task.assign
                .model
                .as_ref()
                .and_then(|model| model.inline.clone()),
        );
        self.progress(TaskState::Training).await?;
        let (model, object) = match self.returned(&key, stored, inline).await {
            Ok(returned) => returned,
            Err(failure) => return self.fail(failure).await,
        };
        self.progress(TaskState::Sending).await?;
        let update = Update {
            key: Some(Key::from(&key)),
            model: Some(model),
            diff: self.spec.trainer.transfer == Transfer::Diff,
            steps: Some(1.0),
            train_seconds: begun.elapsed().as_secs_f64(),
            ..Update::default()
        };
        self.say(to_server::Body::Update(update.clone())).await?;
        self.task = None;
        self.hold(key, update, object);
        Ok(())
    }

    /// The model as it goes back.
    ///
    /// `&mut`, for an agent may be sent to another thread and not shared with one.
    async fn returned(
        &mut self,
        key: &firesteel_base::TaskKey,
        stored: Option<ModelObject>,
        inline: Option<Bytes>,
    ) -> Result<(Object, Option<ModelObject>), Failure> {
        let bytes = inline.unwrap_or_else(|| Bytes::from_static(MODEL));
        let mut object = match stored {
            Some(object) => object,
            None if self.out.is_empty() => {
                let object = Object {
                    length: bytes.len() as u64,
                    inline: Some(bytes),
                    id: 0,
                };
                return Ok((object, None));
            }
            None => self.parts.objects.from_bytes(&bytes[..]).map_err(|error| {
                Failure::new(FailureCode::Malformed, Phase::Train, sentence(&error))
            })?,
        };
        if !self.out.is_empty() {
            let diff = self.spec.trainer.transfer == Transfer::Diff;
            object = filtered(self.filtering(object, key.clone(), diff)).await?;
        }
        if object.len() <= limits::INLINE_OBJECT as u64 {
            let inline = Object {
                inline: Some(Bytes::copy_from_slice(object.bytes())),
                id: object.id().0,
                length: object.len(),
            };
            return Ok((inline, None));
        }
        let offered = self.parts.carrier.offer(offer_of(key), &object);
        Ok((offered, Some(object)))
    }
}
