//! Whose work it is.

/// Who sends requests. The engine shares its slots and its steps among clients, whatever
/// each of them asks for, and knows nothing else of them.
///
/// The default is the program itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(u128);

impl Client {
    /// The client with this name. Only a hash of the name is held.
    pub fn named(name: &[u8]) -> Client {
        let hash = blake3::hash(name);
        let (half, _) = hash.as_bytes().split_at(16);
        let bytes = half.iter().copied();
        Client(bytes.fold(0, |number, byte| number << 8 | u128::from(byte)))
    }
}

/// Whose a sequence is: a client's, and among the client's requests one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) client: Client,
    /// The request's number; the engine numbers requests as they come.
    pub(super) request: u64,
}
