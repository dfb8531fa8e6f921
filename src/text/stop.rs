//! Stand-in.

/// What comes out.
#[derive(Debug, Default)]
pub struct Output {
    /// Text that can be sent.
    pub text: String,
    /// Whether a stop text was met.
    pub stopped: bool,
    /// Bytes sent so far.
    pub emitted: usize,
}

/// Stand-in.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    emitted: usize,
}

impl StopMatcher {
    /// New.
    pub fn new(stops: &[String], markers: &[String]) -> StopMatcher {
        let markers = markers.iter().map(|marker| format!("\n{marker}"));
        StopMatcher {
            stops: stops.iter().cloned().chain(markers).collect(),
            held: String::new(),
            emitted: 0,
        }
    }

    fn out(&mut self, to: usize, stopped: bool) -> Output {
        let text: String = self.held.drain(..to).collect();
        self.emitted += text.len();
        Output {
            text,
            stopped,
            emitted: self.emitted,
        }
    }

    /// Text in.
    pub fn push(&mut self, text: &str) -> Output {
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop))
            .min()
        {
            return self.out(at, true);
        }
        let could_begin = |at: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.held[*at..]))
        };
        let hold = (0..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(could_begin);
        self.out(hold.unwrap_or(self.held.len()), false)
    }

    /// The end.
    pub fn finish(&mut self) -> Output {
        self.out(self.held.len(), false)
    }
}
