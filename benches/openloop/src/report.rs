//! Owns: the figures of a finished load, and how they are written down.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{json, Map, Value};

use crate::args::Class;
use crate::load::Load;
use crate::record::{Nanos, Outcome, Record};

/// Of the connections of `--idle`: how many were open at the start of the load, and at its end.
pub struct Idle {
    pub kept: usize,
    pub left: usize,
}

pub fn json(classes: &[Class], records: &[Record], load: &Load, idle: Option<Idle>) -> Value {
    let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count();
    let answered = count(Outcome::Answered);
    let end = records.iter().map(|record| record.at + record.latency).max().unwrap_or(0);
    json!({
        "requests": records.len(),
        "answered": answered,
        "failed": count(Outcome::Failed),
        "reset": count(Outcome::Reset),
        "cut": count(Outcome::Cut),
        "refused": count(Outcome::Refused),
        "unanswered": count(Outcome::Open),
        "reconnects": load.announced + load.idle_closes,
        "announced": load.announced,
        "statuses": load.statuses.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<Map<_, _>>(),
        "seconds": end as f64 / 1e9,
        "rate": answered as f64 * 1e9 / end.max(1) as f64,
        "lag": lag(records),
        "classes": by_class(classes, records),
        "idle": idle.map(|idle| json!({"kept": idle.kept, "left": idle.left})),
    })
}

fn by_class(classes: &[Class], records: &[Record]) -> Map<String, Value> {
    let of = |number: usize| {
        let wanted =
            |record: &&Record| usize::from(record.class) == number && record.outcome == Outcome::Answered;
        summary(records.iter().filter(wanted).map(|record| record.latency).collect())
    };
    classes.iter().enumerate().map(|(number, class)| (class.name.clone(), of(number))).collect()
}

/// How late the generator was by its own fault.
fn lag(records: &[Record]) -> Value {
    let mut lags: Vec<Nanos> = records.iter().map(|record| record.lag).collect();
    lags.sort_unstable();
    json!({"p99": ms(percentile(&lags, 0.99)), "max": ms(percentile(&lags, 1.0))})
}

fn summary(mut latencies: Vec<Nanos>) -> Value {
    latencies.sort_unstable();
    let sum: u128 = latencies.iter().map(|&latency| u128::from(latency)).sum();
    json!({
        "count": latencies.len(),
        "mean": ms((sum / latencies.len().max(1) as u128) as Nanos),
        "p50": ms(percentile(&latencies, 0.5)),
        "p90": ms(percentile(&latencies, 0.9)),
        "p99": ms(percentile(&latencies, 0.99)),
        "p999": ms(percentile(&latencies, 0.999)),
        "max": ms(percentile(&latencies, 1.0)),
    })
}

/// The smallest value that is not less than this share of them; `sorted` must be.
fn percentile(sorted: &[Nanos], share: f64) -> Nanos {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

fn ms(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}

pub fn write_trace(path: &Path, classes: &[Class], records: &[Record]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "at,class,latency,outcome")?;
    for record in records {
        let (at, latency) = (record.at as f64 / 1e9, ms(record.latency));
        let name = &classes[usize::from(record.class)].name;
        writeln!(file, "{at:.9},{name},{latency:.6},{}", record.outcome.name())?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<Nanos> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 0.5), 500);
        assert_eq!(percentile(&sorted, 0.99), 990);
        assert_eq!(percentile(&sorted, 0.999), 999);
        assert_eq!(percentile(&sorted, 1.0), 1000);
        assert_eq!(percentile(&[7], 0.5), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
