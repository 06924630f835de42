//! A model on its way to this site.

use std::sync::Arc;
use std::time::{Duration, Instant};

use firesteel_carry::{Carrier, Fetched, Order, Progress, filter};
use firesteel_store::{ModelObject, Objects, PartName};
use firesteel_wire::control::Object;
use tokio::task::JoinHandle;

/// How often the server is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// A model on its way. Dropped, it ends.
pub(crate) struct Arriving {
    task: JoinHandle<Result<ModelObject, String>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) started: Instant,
    tell_at: Instant,
}

/// What there is to say of it.
pub(crate) enum Arrival {
    /// How far it is.
    Further,
    /// It is here, or will not come.
    Ended(Result<ModelObject, String>),
}

impl Arriving {
    /// With `objects`, what arrives is in the form in which it travels.
    pub(crate) fn start(carrier: &dyn Carrier, object: Object, objects: Option<Objects>) -> Self {
        let progress = Arc::new(Progress::new(object.length));
        let inline = object.inline.clone();
        let here = carrier.here(&object);
        let fetching = carrier.fetch(Order {
            name: "the round's model".to_owned(),
            part: part_name(object.id),
            object,
            whole: true,
            progress: Arc::clone(&progress),
        });
        let started = Instant::now();
        let arriving = async move {
            let model = match (inline, here, &objects) {
                (Some(bytes), _, Some(objects)) => objects
                    .from_bytes(&bytes[..])
                    .map_err(|error| crate::agent::sentence(&error))?,
                (_, Some(model), _) => model,
                _ => match fetching.await {
                    Ok(Fetched::Here(model)) => model,
                    Ok(Fetched::Live(_)) => return Err("there is no room for it here".to_owned()),
                    Err(error) => return Err(crate::agent::sentence(&error)),
                },
            };
            let Some(objects) = objects else {
                return Ok(model);
            };
            let decoding =
                tokio::task::spawn_blocking(move || match filter::decode(&objects, None, &model) {
                    Ok(decoded) => Ok(decoded.unwrap_or(model)),
                    Err(error) => Err(crate::agent::sentence(&error)),
                });
            decoding
                .await
                .unwrap_or_else(|_| Err("its decoding broke".to_owned()))
        };
        Self {
            task: tokio::spawn(arriving),
            progress,
            started,
            tell_at: started + TELL_EVERY,
        }
    }

    /// What happens next. Nothing is lost when it is cancelled.
    pub(crate) async fn next(&mut self) -> Arrival {
        tokio::select! {
            ended = &mut self.task => Arrival::Ended(
                ended.unwrap_or_else(|error| Err(format!("the transfer broke: {error}"))),
            ),
            () = tokio::time::sleep_until(self.tell_at.into()) => {
                self.tell_at = Instant::now() + TELL_EVERY;
                Arrival::Further
            }
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name of the file of what is offered under a number: the same number is the
/// same bytes, and what is not is found out by its digest.
fn part_name(id: u64) -> PartName {
    let mut name = [0; 32];
    for (to, from) in name.iter_mut().zip(id.to_be_bytes()) {
        *to = from;
    }
    PartName::of_digest(&name)
}
