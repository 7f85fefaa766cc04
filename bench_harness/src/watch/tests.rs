use std::io::Write;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::tail::{Tail, newest};
use super::*;
use crate::measure::journal::{Journal, PairEntry};
use crate::record::telemetry::{CaseTelemetry, Interval};
use crate::record::{TimeSpent, sample};

/// The entries of a run of the sample record's cases, its GPU's clock falling.
fn entries(with_telemetry: bool) -> Vec<Entry> {
    let mut header = Header::new("r1".into(), "2026-01-02T03:04:05Z".into(), "quickstart".into(), "abc".into());
    header.turns_planned = Some(12);
    let mut entries = vec![Entry::Header(header)];
    entries.push(Entry::Controls { round: 0, samples: vec![], time: TimeSpent::default() });
    for round in 0..2 {
        for (number, case) in sample::record().cases.into_iter().enumerate() {
            let Some(mut seen) = case.rounds.get(round).cloned() else { continue };
            if with_telemetry {
                let reading = Reading {
                    sm_clock_mhz: Some(1980 - 30 * number as u32),
                    power_milliwatts: Some(412_300 + 9_000 * number as u32),
                    temperature_c: Some(60 + number as u32),
                    ..Reading::default()
                };
                let interval = Interval { readings: vec![reading; 4], ..Interval::default() };
                seen.telemetry = Some(CaseTelemetry { intervals: vec![interval], ..CaseTelemetry::default() });
            }
            entries.push(Entry::Case { key: case.key, round: seen, time: TimeSpent::default() });
        }
    }
    entries
}

fn view(entries: Vec<Entry>) -> View {
    let mut view = View::default();
    entries.into_iter().for_each(|entry| view.add(entry));
    view
}

fn screen(view: &mut View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend in memory");
    terminal.draw(|frame| draw::draw(frame, view)).expect("drawn");
    let text = terminal.backend().to_string();
    text.lines().map(|line| format!("{}\n", line.trim_matches('"').trim_end())).collect()
}

#[test]
fn the_screen_at_80_by_24_and_wider() {
    insta::assert_snapshot!("watch_80x24", screen(&mut view(entries(true)), 80, 24));
    insta::assert_snapshot!("watch_120x30", screen(&mut view(entries(false)), 120, 30));
}

#[test]
fn pairs_show_their_ratio() {
    let mut pairs = entries(false);
    pairs.truncate(1);
    for round in 0..3 {
        let of = |ns: f64| sample::measured("flash", 1024, ns).rounds[0].clone();
        pairs.push(Entry::Pair(PairEntry {
            key: sample::measured("flash", 1024, 1.0).key,
            slowdown: 0.0,
            round,
            head_first: false,
            base: Some(of(1e6)),
            head: of(1.05e6),
            time: TimeSpent::default(),
        }));
    }
    let mut view = view(pairs);
    view.state = State::Stopped;
    let text = screen(&mut view, 80, 24);
    assert!(text.contains("head/base") && text.contains("+5.0 %") && text.contains("stopped: --resume"), "{text}");
}

#[test]
fn any_size_and_any_scroll_is_drawn() {
    for (width, height) in [(1, 1), (10, 3), (30, 8), (80, 5), (400, 100)] {
        let mut view = view(entries(true));
        view.scroll = usize::MAX;
        screen(&mut view, width, height);
    }
    assert!(screen(&mut View::default(), 80, 24).contains("waiting for a run"));
    let mut scrolled = view(entries(false));
    scrolled.scroll = 3;
    let text = screen(&mut scrolled, 80, 14);
    assert!(text.contains("of 6 cases"), "{text}");
}

#[test]
fn hostile_names_move_no_cursor() {
    let mut hostile = entries(false);
    if let Entry::Case { key, round, .. } = &mut hostile[2] {
        key.case_id = "cpu/\x1b[2J/x".into();
        round.disposition = Disposition::Crashed;
        round.reason = Some("\x1b]0;owned\x07".into());
    }
    assert!(!screen(&mut view(hostile), 80, 24).contains('\x1b'));
}

#[test]
fn a_journal_is_read_while_it_grows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.json.journal");
    let all = entries(false);
    let Entry::Header(header) = &all[0] else { panic!("a header") };
    let mut journal = Journal::create(&path, header.clone()).expect("created");
    assert_eq!(newest(folder.path()).as_deref(), Some(path.as_path()));
    let mut tail = Tail::open(&path).expect("opened");
    assert_eq!(tail.read().expect("read"), all[..1]);
    assert_eq!(tail.state(), State::Running);
    journal.append(&all[1]).expect("written");
    journal.append(&all[2]).expect("written");
    assert_eq!(tail.read().expect("read"), all[1..3]);
    assert!(tail.read().expect("read").is_empty());

    // Half a line is nothing yet; where a resumed run cuts it off, it never was.
    let line = serde_json::to_string(&all[3]).expect("JSON");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
    file.write_all(&line.as_bytes()[..20]).expect("written");
    assert!(tail.read().expect("read").is_empty());
    drop(journal);
    assert_eq!(tail.state(), State::Stopped);
    let (mut journal, ..) = Journal::resume(&path, "abc").expect("resumed");
    assert!(tail.read().expect("read").is_empty());
    journal.append(&all[3]).expect("written");
    assert_eq!(tail.read().expect("read"), all[3..4]);
    journal.remove().expect("removed");
    assert_eq!(tail.state(), State::Finished);

    std::fs::write(&path, "rubbish\n").expect("written");
    assert!(Tail::open(&path).expect("opened").read().is_err());
    assert!(Tail::open(&folder.path().join("none")).is_err());
}
