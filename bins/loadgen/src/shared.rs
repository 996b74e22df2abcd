//! A connection that several slots use at once: made when first needed, and again when it ends.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Mutex;

use crate::{stats::Failure, worker::Worker};

/// Holds a handle whose clones use one connection.
pub(crate) struct Shared<C> {
    current: RefCell<Option<(u64, C)>>,
    /// Counts the connections, so that a slot drops the one that failed it and not its successor.
    generation: Cell<u64>,
    connecting: Mutex<()>,
}

impl<C: Clone> Shared<C> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { current: RefCell::new(None), generation: Cell::new(0), connecting: Mutex::new(()) })
    }

    fn current(&self) -> Option<(u64, C)> {
        self.current.borrow().clone()
    }

    /// The connection that is there, or a new one; however many slots wait, `connect` runs once.
    pub(crate) async fn get(
        &self,
        worker: &Worker,
        connect: impl AsyncFnOnce() -> Result<C, Failure>,
    ) -> Result<(u64, C), Failure> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _only_one = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let connection = connect().await?;
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        if generation > 1 {
            worker.reconnected();
        }
        *self.current.borrow_mut() = Some((generation, connection.clone()));
        Ok((generation, connection))
    }

    /// Forgets a connection that is of no more use, unless it has been replaced already.
    pub(crate) fn forget(&self, generation: u64) {
        let mut current = self.current.borrow_mut();
        if current.as_ref().is_some_and(|(now, _)| *now == generation) {
            *current = None;
        }
    }
}
