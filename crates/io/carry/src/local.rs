//! Both ends share one machine, and one [`Objects`].

use firesteel_store::{ModelObject, ObjectId, Objects};
use firesteel_wire::control::Object;

use crate::{Carrier, CarryError, Fetched, Fetching, Offer, Order};

/// Models are handed over by their number; nothing is copied.
pub struct Local(Objects);

impl Local {
    /// For two roles that share `objects`.
    pub fn new(objects: Objects) -> Self {
        Self(objects)
    }
}

impl Carrier for Local {
    fn offer(&self, _name: Offer, model: &ModelObject) -> Object {
        Object {
            inline: None,
            id: model.id().0,
            length: model.len(),
        }
    }

    fn withdraw(&self, _name: Offer) {}

    fn here(&self, object: &Object) -> Option<ModelObject> {
        self.0.get(ObjectId(object.id))
    }

    fn fetch(&self, order: Order) -> Fetching {
        let found = self.here(&order.object);
        let what = format!("object {}", order.object.id);
        Box::pin(async move { found.map(Fetched::Here).ok_or(CarryError::Gone { what }) })
    }
}
