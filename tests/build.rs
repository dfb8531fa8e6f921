//! Builds small GGUF files, valid and invalid, for the other tests.

/// A metadata value to write.
#[derive(Clone, Debug)]
pub(crate) enum Item<'a> {
    U16(u16),
    U32(u32),
    I8(i8),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Strs(&'a [&'a str]),
    F32s(&'a [f32]),
    I32s(&'a [i32]),
    /// The id of a value type, and the raw bytes that follow it.
    Raw(u32, Vec<u8>),
}

/// Builds a GGUF file; [`Builder::bytes`] encodes it.
#[derive(Clone)]
pub(crate) struct Builder {
    version: u32,
    alignment: usize,
    entry_count: u64,
    /// The encoded entries, with their keys.
    entries: Vec<(String, Vec<u8>)>,
    tensor_count: u64,
    tensors: Vec<u8>,
    data: Vec<u8>,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            version: 3,
            alignment: 32,
            entry_count: 0,
            entries: Vec::new(),
            tensor_count: 0,
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn version(mut self, version: u32) -> Builder {
        self.version = version;
        self
    }

    /// Adds a metadata entry. An alignment must be added before the tensors.
    pub(crate) fn with(mut self, key: &str, item: Item<'_>) -> Builder {
        if let ("general.alignment", Item::U32(alignment)) = (key, &item) {
            self.alignment = (*alignment as usize).max(1);
        }
        self.entry_count += 1;
        let mut entry = Vec::new();
        string(&mut entry, key);
        value(&mut entry, item);
        self.entries.push((key.to_owned(), entry));
        self
    }

    /// Replaces the value of `key`, or adds it.
    pub(crate) fn set(mut self, key: &str, item: Item<'_>) -> Builder {
        let Some(at) = self.entries.iter().position(|(known, _)| known == key) else {
            return self.with(key, item);
        };
        let mut file = self.clone().with(key, item);
        self.entries[at] = file.entries.pop().expect("it was added");
        self
    }

    /// Adds a tensor with its data; `dims` as in the file, innermost first.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Builder {
        self.data
            .resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.tensor_at(name, dims, kind, offset)
    }

    /// Adds a tensor that claims to lie at `offset` of the data.
    pub(crate) fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Builder {
        self.tensor_count += 1;
        string(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.tensors.extend(dim.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    /// Encodes the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.entry_count.to_le_bytes());
        for (_, entry) in &self.entries {
            file.extend(entry);
        }
        file.extend(&self.tensors);
        if self.tensor_count > 0 {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
        }
        file.extend(&self.data);
        file
    }
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn value(into: &mut Vec<u8>, item: Item<'_>) {
    let mut head = |ids: &[u32], count: Option<usize>| {
        for id in ids {
            into.extend(id.to_le_bytes());
        }
        into.extend(
            count
                .into_iter()
                .flat_map(|count| (count as u64).to_le_bytes()),
        );
    };
    match item {
        Item::U16(value) => {
            head(&[2], None);
            into.extend(value.to_le_bytes());
        }
        Item::U32(value) => {
            head(&[4], None);
            into.extend(value.to_le_bytes());
        }
        Item::I8(value) => {
            head(&[1], None);
            into.extend(value.to_le_bytes());
        }
        Item::F32(value) => {
            head(&[6], None);
            into.extend(value.to_le_bytes());
        }
        Item::Bool(value) => {
            head(&[7], None);
            into.push(value.into());
        }
        Item::Str(text) => {
            head(&[8], None);
            string(into, text);
        }
        Item::Strs(texts) => {
            head(&[9, 8], Some(texts.len()));
            for text in texts {
                string(into, text);
            }
        }
        Item::F32s(values) => {
            head(&[9, 6], Some(values.len()));
            into.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Item::I32s(values) => {
            head(&[9, 5], Some(values.len()));
            into.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Item::Raw(id, bytes) => {
            head(&[id], None);
            into.extend(bytes);
        }
    }
}
