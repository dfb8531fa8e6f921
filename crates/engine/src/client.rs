//! The owners of requests, among whom the engine shares its slots.

/// The client that sends a request. The engine shares its slots and its steps among clients,
/// regardless of the number of their requests, and knows nothing else about them.
///
/// The default client is the program itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(u128);

impl Client {
    /// Returns the client with this name. Only a hash of the name is stored.
    pub fn named(name: &[u8]) -> Client {
        let hash = blake3::hash(name);
        let (half, _) = hash.as_bytes().split_at(16);
        let bytes = half.iter().copied();
        Client(bytes.fold(0, |number, byte| number << 8 | u128::from(byte)))
    }
}

/// The owner of a sequence: a client, and one of the client's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) client: Client,
    /// The number of the request; the engine numbers requests in the order of their arrival.
    pub(super) request: u64,
}
