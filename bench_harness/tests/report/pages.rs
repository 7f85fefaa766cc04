//! Pages of `attnbench report html` in a real browser: they draw themselves without a complaint and ask for nothing that is
//! not on the disk; filters, sorting and addresses work; texts stay texts; a thousand cases open at once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support;

/// A report of a real run against an altered copy of itself, with a history; beside it, in `devices`, one of the run and a copy
/// that says it is of another device.
fn report() -> &'static Path {
    static REPORT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = REPORT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let suites = concat!(env!("CARGO_MANIFEST_DIR"), "/../suites/ci.toml");
        attnbench(folder.path(), &["run", suites, "--rounds", "2", "--out", "base.json"]);
        let mut base = support::record(Path::new(&place("base.json")));
        // A verdict takes more rounds than a test has time for: the two that ran stand for six.
        for case in base["cases"].as_array_mut().expect("cases") {
            let rounds = case["rounds"].as_array().expect("rounds").clone();
            let again = rounds.iter().cycle().take(6).enumerate().map(|(at, round)| {
                let mut round = round.clone();
                round["round"] = json!(at);
                round
            });
            case["rounds"] = again.collect();
        }
        write(&place("base.json"), &base);

        // A head that is slower in one kernel and has lost a case.
        let mut head = base.clone();
        head["run"]["id"] = json!("head");
        for case in head["cases"].as_array_mut().expect("cases") {
            if case["case_id"].as_str().is_some_and(|id| id.starts_with("cpu/naive/")) {
                for ns in case["rounds"].as_array_mut().expect("rounds").iter_mut().flat_map(times) {
                    *ns = json!(2.0 * ns.as_f64().expect("a time"));
                }
            }
        }
        head["cases"].as_array_mut().expect("cases").pop();
        write(&place("head.json"), &head);
        for (name, model, joules) in [("first", "First GPU", 300), ("second", "Second GPU", 700)] {
            let mut record = base.clone();
            record["run"]["id"] = json!(name);
            record["fingerprint"]["gpu_model"] = json!(model);
            let cases = record["cases"].as_array_mut().expect("cases").iter_mut();
            for round in cases.flat_map(|case| case["rounds"].as_array_mut().expect("rounds")) {
                round["telemetry"] = telemetry(joules);
            }
            write(&place(&format!("{name}.json")), &record);
        }

        // Nights of one commit each, of which a later one is slower.
        let nights: String = (0..60)
            .map(|night: u32| {
                let ns = if night < 35 { 1000.0 } else { 1100.0 } + f64::from(night * 7 % 5);
                format!("2026-01-{:02}T{:02}:00:00Z,{:040x},{ns}\n", 1 + night / 24, night % 24, 1 + night * 7919)
            })
            .collect();
        std::fs::write(place("nights.csv"), format!("time,commit,latency_ns_median\n{nights}")).expect("written");
        attnbench(
            folder.path(),
            &["history", "import", "nights.csv", "--column", "latency_ns_median", "--store", "h.db"],
        );

        let pages = ["report", "html", "head.json", "--base", "base.json", "--store", "h.db", "--out", "pages"];
        attnbench(folder.path(), &pages);
        let priced = ["--price", "first-gpu=2.5", "--price", "second-gpu=3.5", "--out", "devices"];
        attnbench(folder.path(), &[&["report", "html", "first.json", "second.json"], &priced[..]].concat());
        let pages = folder.path().join("pages");
        (folder, pages)
    });
    path
}

/// What a GPU would have said of a loop of two seconds that took so many joules.
fn telemetry(joules: u64) -> Value {
    let readings = json!([{ "at_ns": 0, "energy_millijoules": 0 }, { "at_ns": 2_200_000_000u64, "energy_millijoules": 1000 * joules }]);
    let hot_loop =
        json!({ "calls": 1000, "device_ns": 2.1e9, "interval": { "wall_ns": 2_200_000_000u64, "readings": readings } });
    json!({ "gpu_uuid": "GPU-1", "source": "written by hand", "hot_loop": hot_loop })
}

fn times(round: &mut Value) -> impl Iterator<Item = &mut Value> {
    round["device_ns"].as_array_mut().expect("times").iter_mut()
}

fn attnbench(folder: &Path, arguments: &[&str]) {
    let done = support::attnbench().args(arguments).current_dir(folder).output().expect("the binary runs");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn write(path: &str, value: &Value) {
    std::fs::write(path, value.to_string()).expect("written");
}

fn pages(report: &Path) -> Vec<String> {
    let mut pages: Vec<String> = std::fs::read_dir(report)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.ends_with(".html"))
        .collect();
    pages.sort();
    pages
}

/// The address of the first case of the report, or of the first that says so.
fn some_case(browser: &mut Browser, report: &Path, search: &str) -> String {
    browser.open(report, &format!("cases.html#q={search}"));
    let address = browser.value("document.querySelector('td.case a').getAttribute('href')");
    address.as_str().expect("a link").to_owned()
}

#[test]
fn every_page_of_a_real_run_draws_itself() {
    let Some(mut browser) = Browser::start() else { return };
    let report = report();
    let of_several = report.with_file_name("devices");
    assert_eq!((pages(report).len(), pages(&of_several).len()), (12, 11));
    let mut seen: Vec<(&Path, String)> = pages(report).into_iter().map(|page| (report, page)).collect();
    seen.retain(|(_, page)| page != "case.html");
    seen.push((report, some_case(&mut browser, report, "flash")));
    seen.push((&of_several, "devices.html#show=watt".to_owned()));
    seen.push((&of_several, "devices.html#show=dollar".to_owned()));
    seen.push((&of_several, "energy.html#show=work".to_owned()));
    for (report, page) in &seen {
        browser.open(report, page);
        browser.draw_plots();
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{page}");
        let name = page.split('.').next().expect("a name");
        // What is drawn, not only where: points, lines, cells.
        let marks =
            browser.value("document.querySelectorAll('.plot .points path, .plot .hm image, .plot .js-line').length");
        let least = match name {
            "latency" | "memory" | "roofline" => 30,
            "samples" | "case" | "comparison" | "history" => 20,
            "ratios" => 1,
            "devices" => 2,
            _ => 0,
        };
        assert!(marks.as_u64().is_some_and(|marks| marks >= least), "{page}: {marks} marks");
        let rows = browser.value("document.querySelectorAll('tbody tr').length");
        let least = match name {
            "cases" | "comparison" | "devices" => 40,
            "index" | "samples" | "case" | "environment" => 10,
            _ => 0,
        };
        assert!(rows.as_u64().is_some_and(|rows| rows >= least), "{page}: {rows} rows");
        let wide = browser.value("document.documentElement.scrollWidth - innerWidth");
        assert!(wide.as_i64().is_some_and(|wide| wide <= 0), "{page} is {wide} pixels too wide");
    }
    browser.open(&of_several, "energy.html");
    browser.draw_plots();
    let marks = browser.value("document.querySelectorAll('.plot .points path').length");
    assert!(marks.as_u64().is_some_and(|marks| marks >= 30), "{marks} energies");
    // Where there are none, the page says how to get some.
    browser.open(report, "energy.html");
    let text = browser.value("document.getElementById('main').textContent");
    assert!(text.as_str().is_some_and(|text| text.contains("attnbench run --energy")), "{text}");

    // A phone, on which nothing but tables may be wider than the screen.
    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", phone);
    for (report, page) in &seen {
        browser.open(report, page);
        browser.draw_plots();
        let wide = browser.value("document.documentElement.scrollWidth");
        assert!(wide.as_i64().is_some_and(|wide| wide <= 390), "{page} is {wide} pixels wide");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn cases_are_chosen_sorted_and_found_again_by_the_address() {
    let Some(mut browser) = Browser::start() else { return };
    let report = report();
    let rows =
        "[...document.querySelectorAll('main table tbody tr')].map((row) => row.querySelector('.id').textContent)";
    let names = |value: Value| -> Vec<String> { serde_json::from_value(value).expect("texts") };
    browser.open(report, "cases.html");
    let all = names(browser.value(rows));
    assert!(all.len() >= 40, "{all:?}");

    // A value of an axis.
    let choose = "(() => { const select = document.querySelector('[data-axis=kernel]'); select.value = 'flash'; \
                  select.dispatchEvent(new Event('change')); })()";
    browser.value(choose);
    let flash = names(browser.value(rows));
    assert!(flash.len() > 10 && flash.iter().all(|id| id.starts_with("cpu/flash/")), "{flash:?}");
    assert_eq!(
        browser.value("document.querySelector('.count').textContent"),
        format!("{} of {} cases", flash.len(), all.len())
    );

    // Words, of which all must be there.
    let search = "(() => { const search = document.querySelector('[type=search]'); search.value = 'BACKWARD causal'; \
                  search.dispatchEvent(new Event('input')); })()";
    browser.value(search);
    let found = names(browser.value(rows));
    assert!(!found.is_empty() && found.iter().all(|id| id.contains("/backward/full+causal/")), "{found:?}");

    // The address brings all of it back.
    let hash = browser.value("location.hash");
    let hash = hash.as_str().expect("a text");
    assert!(hash.contains("kernel=flash") && hash.contains("q=BACKWARD"), "{hash}");
    browser.open(report, &format!("cases.html{hash}"));
    assert_eq!(names(browser.value(rows)), found);

    // Sorted by a click, the largest first; the other way by a second one.
    browser.open(report, "cases.html");
    let click =
        "[...document.querySelectorAll('th button')].find((button) => button.textContent === 'latency').click()";
    browser.value(click);
    let slowest = names(browser.value(rows));
    assert_eq!(browser.value("location.hash"), "#sort=-latency");
    let times =
        "[...document.querySelectorAll('main table tbody tr')].map((row) => row.cells[2].firstChild.textContent)";
    let ns = |text: &str| -> f64 {
        let (number, unit) = text.split_once(' ').expect("a unit");
        let factor = match unit {
            "s" => 1e9,
            "ms" => 1e6,
            "µs" => 1e3,
            _ => 1.0,
        };
        number.parse::<f64>().expect("a number") * factor
    };
    let sorted: Vec<f64> = names(browser.value(times)).iter().map(|text| ns(text)).collect();
    assert!(sorted.is_sorted_by(|a, b| a >= b), "{sorted:?}");
    browser.value(click);
    let fastest = names(browser.value(rows));
    assert!(fastest != slowest && fastest.len() == slowest.len());
    assert_eq!(browser.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')"), "ascending");

    // A verdict chosen on the first page is a filter of the comparison.
    browser.open(report, "index.html");
    let link = browser.value("document.querySelector('.counts a').getAttribute('href')");
    browser.open(report, link.as_str().expect("a link"));
    let verdicts =
        names(browser.value("[...document.querySelectorAll('main table .tag')].map((tag) => tag.textContent)"));
    assert!(!verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn light_and_dark_follow_the_system_until_somebody_chooses() {
    let Some(mut browser) = Browser::start() else { return };
    let report = report();
    let paper = "getComputedStyle(document.body).backgroundColor";
    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.call("Emulation.setEmulatedMedia", features);
        browser.open(report, "roofline.html");
        browser.draw_plots();
        assert_eq!(browser.value("document.documentElement.dataset.theme"), scheme);
        papers.push(browser.value(paper));
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
    assert_ne!(papers[0], papers[1]);
    let mark = "getComputedStyle(document.querySelector('.plot .xtick text')).fill";
    let dark = browser.value(mark);
    browser.value("document.getElementById('theme').click()");
    assert_eq!(browser.value(paper), papers[0], "light was chosen");
    assert_ne!(browser.value(mark), dark, "plots follow");
}

/// Whatever a kernel, a suite or a reason is called, it is shown as that and is nothing else.
#[test]
fn texts_of_a_record_stay_texts() {
    let Some(mut browser) = Browser::start() else { return };
    let hostile = "</script><script>window.hurt=1</script><img src=x onerror=window.hurt=1>\"a\",'b'`${1}`\\&lt;";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut record = support::record(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json")));
    record["run"]["suite"] = json!(hostile);
    record["fingerprint"][hostile] = json!(hostile);
    for case in record["cases"].as_array_mut().expect("cases") {
        let id = case["case_id"].as_str().expect("an id").replacen("/flash/", &format!("/{hostile}/"), 1);
        case["case_id"] = json!(id);
        for field in ["matrix", "reason"] {
            case[field] = json!(hostile);
        }
        case["flags"] = json!([hostile]);
    }
    write(folder.path().join("record.json").to_str().expect("UTF-8"), &record);
    attnbench(folder.path(), &["report", "html", "record.json", "--out", "pages"]);
    let report = folder.path().join("pages");
    let case = some_case(&mut browser, &report, "hurt");
    let mut seen = pages(&report);
    seen.push(case.clone());
    for page in &seen {
        browser.open(&report, page);
        browser.draw_plots();
        assert_eq!(browser.value("window.hurt ?? 'unhurt'"), "unhurt", "{page}");
        assert_eq!(browser.value("document.querySelectorAll('main script, main img').length"), 0, "{page}");
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{page}");
    }
    browser.open(&report, &case);
    let shown = browser.value("document.querySelector('h1').textContent");
    assert!(shown.as_str().is_some_and(|text| text.starts_with(&format!("cpu/{hostile}/softmax/"))), "{shown}");
}

/// How long a thousand cases take is printed; that they are there is what is asserted.
#[test]
fn a_thousand_cases() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut record = support::record(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json")));
    let models = record["cases"].as_array().expect("cases")[..3].to_vec();
    let cases: Vec<Value> = (0..1000)
        .map(|number: usize| {
            let mut case = models[number % 3].clone();
            let (batch, keys) = (1 + number / 15, 256usize << (number / 3 % 5));
            let kernel = ["flash", "flash1", "naive"][number % 3];
            case["case_id"] =
                json!(format!("cpu/{kernel}/softmax/prefill/full+causal/f32/b{batch}/h8:2/q{keys}/k{keys}/d64"));
            // As many samples as a run takes of a case at most.
            let rounds: Vec<Value> = (0..5)
                .map(|at| {
                    let mut round = case["rounds"][at % 2].clone();
                    round["round"] = json!(at);
                    for list in ["device_ns", "wall_ns", "sets"] {
                        let once = round[list].as_array().expect("a list").clone();
                        round[list] = (0..5).flat_map(|_| once.clone()).collect();
                    }
                    round
                })
                .collect();
            case["rounds"] = json!(rounds);
            case
        })
        .collect();
    record["cases"] = json!(cases);
    write(folder.path().join("record.json").to_str().expect("UTF-8"), &record);
    attnbench(folder.path(), &["report", "html", "record.json", "--out", "pages"]);
    let report = folder.path().join("pages");
    // By the thread's own clock, which other programs hardly move.
    browser.call("Performance.enable", json!({ "timeDomain": "threadTicks" }));
    for page in ["index.html", "cases.html", "latency.html", "roofline.html", "ratios.html", "samples.html"] {
        // Another page may be another process, whose clock starts anew.
        browser.call("Page.navigate", json!({ "url": "about:blank" }));
        let before = browser.thread_s();
        browser.open(&report, page);
        // Whatever is seen first is drawn.
        browser.wait(
            "[...document.querySelectorAll('.plot')].filter((plot) => plot.getBoundingClientRect().top < innerHeight)\
             .every((plot) => plot.dataset.drawn)",
        );
        let thread_ms = 1e3 * (browser.thread_s() - before);
        let ms = browser.value("Math.round(performance.now())");
        println!("{page}: a thousand cases took {thread_ms:.0} ms of the page's thread, {ms} ms by the clock");
    }
    browser.open(&report, "cases.html");
    assert_eq!(browser.value("document.querySelector('.count').textContent"), "1000 cases");
    browser.value(
        "[...document.querySelectorAll('button')].find((button) => button.textContent === 'Show all 1000').click()",
    );
    assert_eq!(browser.value("document.querySelectorAll('tbody tr').length"), 1000);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
