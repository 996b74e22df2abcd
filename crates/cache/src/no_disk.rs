//! Where the feature `disk` is off there is no second tier, and nothing to wait for.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{
    disk_options::{DiskError, DiskOptions},
    layer::Core,
    store::Variants,
};

/// None of it is ever made.
pub(crate) enum Disk {}

impl Disk {
    pub(crate) fn open(_: &DiskOptions) -> Result<Self, DiskError> {
        Err(DiskError::NotBuilt)
    }

    pub(crate) fn put(&self, _: &[u8], _: &Variants, _: u64) {
        match *self {}
    }

    pub(crate) fn now(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn forget_older(&self, _: &[u8]) {
        match *self {}
    }

    pub(crate) fn note(&self, _: &[u8]) -> bool {
        match *self {}
    }

    pub(crate) fn tidy(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn forget(&self, _: &[u8]) {
        match *self {}
    }

    pub(crate) async fn written(&self) {
        match *self {}
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        match *self {}
    }
}

pub(crate) type Load = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Core {
    pub(crate) fn load(self: &Arc<Self>, _: &[u8]) -> Option<Load> {
        None
    }
}
