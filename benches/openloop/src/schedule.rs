//! Owns: which requests there are and when each is due. The same seed gives the same requests.

use fastrand::Rng;

use crate::args::{Class, Options, Spacing};
use crate::record::{Nanos, Record};

/// All requests of an open loop, in the order of their times.
pub fn arrivals(options: &Options, spacing: Spacing) -> Vec<Record> {
    let mut random = Rng::with_seed(options.seed);
    let mut records = Vec::with_capacity((options.rate * options.seconds * 1.2) as usize + 16);
    let mut at = 0.0;
    loop {
        at += gap(spacing, &mut random) / options.rate;
        if at >= options.seconds {
            return records;
        }
        records.push(Record::due((at * 1e9) as Nanos, draw(&options.classes, &mut random)));
    }
}

/// In units of the mean gap.
fn gap(spacing: Spacing, random: &mut Rng) -> f64 {
    match spacing {
        Spacing::Constant => 1.0,
        Spacing::Poisson => -(1.0 - random.f64()).ln(),
    }
}

pub fn draw(classes: &[Class], random: &mut Rng) -> u8 {
    let all: f64 = classes.iter().map(|class| class.weight).sum();
    let mut left = random.f64() * all;
    for (index, class) in classes.iter().enumerate() {
        left -= class.weight;
        if left < 0.0 {
            return index as u8;
        }
    }
    // Rounding: the last one that is drawn at all.
    classes.iter().rposition(|class| class.weight > 0.0).unwrap_or(0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(weight: f64) -> Class {
        Class { name: String::new(), weight, path: String::new() }
    }

    #[test]
    fn shares_are_those_of_the_weights() {
        let classes = [class(19.0), class(1.0)];
        let mut random = Rng::with_seed(3);
        let seconds = (0..100_000).filter(|_| draw(&classes, &mut random) == 1).count();
        assert!((4_700..5_300).contains(&seconds), "{seconds}");
    }

    #[test]
    fn mean_gap_is_one() {
        let mut random = Rng::with_seed(4);
        let sum: f64 = (0..100_000).map(|_| gap(Spacing::Poisson, &mut random)).sum();
        assert!((sum / 1e5 - 1.0).abs() < 0.02, "{sum}");
    }
}
