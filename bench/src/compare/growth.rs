//! The parts P6 (memory per entry) and P7 (latencies before, during and after the growth of tables).

use super::grid::Effort;
use super::machine::Placement;
use super::process::resident_bytes;
use super::report::{Growth, Measured, Memory};
use super::sides::{Ground, Who};
use super::turns::{bench, fill};

/// Bytes of a value.
const VALUE_BYTES: u64 = 64;

/// Measures P6 and P7 if they are requested, each on freshly started, empty sides.
pub(super) fn run(
    parts: &[&str],
    effort: &Effort,
    ground: &Ground<'_>,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    // The quick run only shows that the measurement works, so one side is enough.
    let all = [Who::Kv, Who::Redis, Who::Valkey];
    for &who in &all[..if effort.is_quick { 1 } else { all.len() }] {
        if !parts.contains(&"P6") && !parts.contains(&"P7") {
            continue;
        }
        let missing = ground.missing(who);
        if !measured.sides.iter().any(|(known, _)| *known == who) {
            let told = match &missing {
                Some(why) => format!("left out: {why}"),
                None => ground.version(who)?,
            };
            measured.sides.push((who, told));
        }
        if missing.is_some() {
            continue;
        }
        if parts.contains(&"P6") {
            measured.memory.push(memory(ground, effort, who)?);
        }
        if parts.contains(&"P7") {
            measured.growth.push(growth(ground, effort, who)?);
        }
    }
    Ok(())
}

fn memory(ground: &Ground<'_>, effort: &Effort, who: Who) -> anyhow::Result<Memory> {
    let Ground { programs, machine, .. } = *ground;
    let side = ground.start(who)?;
    let before = resident_bytes(side.pids[0])?;
    let fill = fill(effort.entries, VALUE_BYTES, 50, 16);
    let report = bench(programs, machine, Placement::Apart, &side, &fill)?;
    let grown = resident_bytes(side.pids[0])?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss)] // Both are exact as a double.
    let bytes_per_entry = grown as f64 / report.filled as f64;
    Ok(Memory { who, entries: report.filled, bytes_per_entry })
}

fn growth(ground: &Ground<'_>, effort: &Effort, who: Who) -> anyhow::Result<Growth> {
    let Ground { programs, machine, .. } = *ground;
    let side = ground.start(who)?;
    let run = |arguments: &[String]| bench(programs, machine, Placement::Apart, &side, arguments);
    let reads = |keys: u64| {
        let line = format!(
            "--reads 100 --keys {keys} --value-size {VALUE_BYTES} --connections 1 --duration {} \
             --warm-up {}",
            effort.span.as_secs_f64(),
            effort.warm_up.as_secs_f64()
        );
        line.split(' ').map(ToOwned::to_owned).collect::<Vec<String>>()
    };
    let (few, many) = effort.growth;
    run(&fill(few, VALUE_BYTES, 8, 8))?;
    let before = run(&reads(few))?;
    let filling = run(&fill(many, VALUE_BYTES, 8, 8))?;
    let after = run(&reads(many))?;
    Ok(Growth {
        who,
        keys: (few, many),
        p50_us: (before.reads.p50, after.reads.p50),
        filling: filling.fills,
    })
}
