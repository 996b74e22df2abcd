//! Countries of addresses, from a local database in the MMDB format.

use std::{fmt, net::IpAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use maxminddb::{PathElement, Reader};

use super::CountryCode;

/// A database that tells an address's country: GeoLite2-Country, GeoIP2, DB-IP and what else has `country.iso_code`. It is held in
/// memory as a whole, some 10 MB for the usual ones.
pub struct CountryDatabase(Reader<Vec<u8>>);

impl CountryDatabase {
    /// Takes the content of a file.
    ///
    /// # Errors
    /// When it is no such database, or has damage that shows before any look-up.
    pub fn parse(content: Vec<u8>) -> Result<Self, CountryError> {
        let reader = Reader::from_source(content).map_err(|error| CountryError(error.to_string()))?;
        Ok(Self(reader))
    }

    /// The country of an address, where it has one. An entry that is damaged has none.
    pub fn country(&self, address: IpAddr) -> Option<CountryCode> {
        let path = [PathElement::Key("country"), PathElement::Key("iso_code")];
        let found = self.0.lookup(address).ok()?;
        let code: Option<&str> = found.decode_path(&path).ok()?;
        CountryCode::new(code?)
    }
}

impl fmt::Debug for CountryDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metadata = self.0.metadata();
        f.debug_struct("CountryDatabase").field("type", &metadata.database_type).finish_non_exhaustive()
    }
}

/// What is wrong with a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no country database: {0}")]
pub struct CountryError(String);

/// A [`CountryDatabase`] that can be replaced while it is in use. Clones are the same one. Without a database no address has a country.
#[derive(Clone, Debug, Default)]
pub struct Countries(Arc<ArcSwapOption<CountryDatabase>>);

impl Countries {
    /// Begins with this database.
    pub fn new(database: CountryDatabase) -> Self {
        let countries = Self::default();
        countries.replace(database);
        countries
    }

    /// Puts another database in its place.
    pub fn replace(&self, database: CountryDatabase) {
        self.0.store(Some(Arc::new(database)));
    }

    /// The country of an address.
    pub fn country(&self, address: IpAddr) -> Option<CountryCode> {
        self.0.load().as_ref()?.country(address)
    }
}
