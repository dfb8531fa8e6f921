//! A reference matcher, which tries each end of the whole text in turn.

/// Whether a line after `before`, which is whole lines, is in a fenced code block.
pub(super) fn in_code(before: &str) -> bool {
    let mut open: Option<&str> = None;
    for line in before.split(['\n', '\r']) {
        let text = line.trim_start_matches(' ');
        let fence_end = match text.as_bytes().first() {
            Some(&mark @ (b'`' | b'~')) => text
                .bytes()
                .position(|byte| byte != mark)
                .unwrap_or(text.len()),
            _ => 0,
        };
        let (fence, info) = text.split_at(fence_end);
        if fence.len() < 3 || line.len() - text.len() > 3 {
            continue;
        }
        match open {
            None if fence.starts_with('~') || !info.contains('`') => open = Some(fence),
            Some(begun)
                if fence.starts_with(begun) && info.trim_matches([' ', '\t']).is_empty() =>
            {
                open = None;
            }
            _ => {}
        }
    }
    open.is_some()
}

/// Where the answer ends if a marker that counts follows `before`. In a code block it counts
/// after a blank line only.
fn turn_end(before: &str) -> Option<usize> {
    if !before.is_empty() && !before.ends_with(['\n', '\r']) {
        return None;
    }
    let content = before.trim_end_matches([' ', '\t', '\r', '\n']).len();
    let run = &before[content..];
    let line_breaks = run.replace("\r\n", "\n").matches(['\n', '\r']).count();
    if in_code(before) && line_breaks < 2 {
        return None;
    }
    // The line of the last content extends to the first line break.
    let line_end = run.find(['\n', '\r']).filter(|_| content > 0);
    Some(content + line_end.unwrap_or(0))
}

/// The headers in the code block that is open at the end of `text`: for each the end of the
/// answer before it, and the end of its line.
fn headers(text: &str, markers: &[String]) -> Vec<(usize, usize)> {
    let last_line = text.rfind(['\n', '\r']).map_or(0, |at| at + 1);
    if markers.iter().all(|marker| !text.contains(marker.as_str())) || !in_code(&text[..last_line])
    {
        return Vec::new();
    }
    let line_ends = |from: usize| {
        let breaks = text[from..].match_indices(['\n', '\r']);
        breaks.map(move |(at, _)| from + at + 1)
    };
    let starts_in_code = line_ends(0).filter(|&start| {
        let mut open = std::iter::once(start).chain(line_ends(start));
        open.all(|start| in_code(&text[..start]))
    });
    let mut found: Vec<(usize, usize)> = starts_in_code
        .filter_map(|start| Some((start, turn_end(&text[..start])?)))
        .flat_map(|(start, cut)| {
            let ends = markers.iter().filter_map(move |marker| {
                let rest = text[start..].strip_prefix(marker.as_str())?;
                let rest = rest.trim_start_matches([' ', '\t']);
                let fills = rest.starts_with(['\n', '\r']);
                fills.then(|| (cut, text.len() - rest.len() + 1))
            });
            ends.collect::<Vec<_>>()
        })
        .collect();
    found.sort_by_key(|&(_, end)| end);
    found.dedup_by_key(|&mut (_, end)| end);
    found
}

/// The result for a whole text, by trying each end in turn.
pub(super) fn reference(
    text: &str,
    stops: &[String],
    markers: &[String],
    trim: bool,
) -> (String, bool) {
    let blank = [' ', '\t', '\r', '\n'];
    let text = if trim {
        text.trim_start_matches(blank)
    } else {
        text
    };
    for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let so_far = &text[..end];
        let of_stops = stops
            .iter()
            .filter_map(|stop| so_far.strip_suffix(stop.as_str()));
        let of_markers = markers.iter().filter_map(|marker| {
            let before = so_far.strip_suffix(marker.as_str())?;
            let code = in_code(before);
            turn_end(before).filter(|_| !code).map(|end| &before[..end])
        });
        let cut = of_stops.chain(of_markers).min_by_key(|cut| cut.len());
        // A header counts from the end of its line on.
        if cut.is_none() && !so_far.ends_with(['\n', '\r']) {
            continue;
        }
        let headers = headers(so_far, markers);
        let of_headers = match headers[..] {
            [(cut, _), .., (_, last)] if last == end => Some(&so_far[..cut]),
            _ => None,
        };
        let cuts = cut.into_iter().chain(of_headers);
        if let Some(cut) = cuts.min_by_key(|cut| cut.len()) {
            let first = headers.first().map_or(end, |&(cut, _)| cut);
            return (cut[..cut.len().min(first)].to_owned(), true);
        }
    }
    let first = headers(&format!("{text}\n"), markers);
    let first = first.first().map(|&(cut, _)| cut);
    let begun = markers.iter().flat_map(|marker| {
        let begun = marker.char_indices().map(|(at, _)| &marker[..at]);
        let begun = begun.filter(|begun| begun.contains(char::is_alphanumeric));
        begun.filter_map(|begun| {
            let before = text.strip_suffix(begun)?;
            turn_end(before).filter(|&end| end > 0)
        })
    });
    let end = first.into_iter().chain(begun).min().unwrap_or(text.len());
    (text[..end].to_owned(), false)
}
