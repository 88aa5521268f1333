//! Times attention kernels against each other in one process, interleaved, and prints ratios of medians.

use std::process::ExitCode;

use anyhow::Context;
use deltallm::Isa;
use deltallm_benches::args::{Args, CANDLE};
use deltallm_benches::measure::Plan;
use deltallm_benches::peak::Peak;
use deltallm_benches::peers::candle::{Candle, Path};
use deltallm_benches::peers::torch::{Sdpa, Torch};
use deltallm_benches::report::{Report, baseline, rows};
use deltallm_benches::subject::Subject;
use deltallm_benches::variants::{F32, OURS};
use deltallm_benches::{Inputs, machine, measure, restart_with, table};
use deltallm_cli::{Progress, main_with, print_json};

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    restart_with(args.threads)?;
    let (threads, isa) = (usize::from(args.threads), Isa::from_env()?);
    let mut torch = args.torch.as_deref().map(|python| Torch::start(python, threads)).transpose()?;
    let inputs = args.inputs()?;
    let mut report = Report {
        rows: Vec::new(),
        cpu: machine::cpu(),
        date: machine::date(),
        level: isa.to_string(),
        threads,
        settings: inputs.description.clone(),
        layers: inputs.layers.len(),
        windows: inputs.windows.len(),
        repetitions: args.repetitions.into(),
        decode_steps: args.decode_steps.into(),
        torch: torch.as_ref().map(|torch| torch.greeting.torch.clone()),
        notes: Vec::new(),
    };
    print_header(&report, &inputs);
    for n in args.lengths() {
        for &phase in &args.phases {
            let (repetitions, steps) = (args.repetitions.into(), args.decode_steps.into());
            let plan = Plan { phase, n, repetitions, steps };
            let mut subjects = subjects(&args, &inputs, &plan, torch.as_mut(), &mut report.notes)?;
            let mut progress = Progress::new("timing");
            let mut step = |round| progress.update(round + 1, plan.repetitions + 1);
            let results = measure(&mut subjects, &inputs, &plan, &Peak::new(isa, threads), &mut step)?;
            drop(progress);
            let rows = rows(&inputs, &plan, &results, isa.name(), threads);
            rows.iter().for_each(|row| println!("{}", table::line(row)));
            if args.per_layer {
                println!("{}", table::by_layer(&rows, baseline(phase)));
            }
            report.rows.extend(rows);
        }
    }
    report.notes.iter().for_each(|note| println!("{note}"));
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// Everyone who takes part.
fn subjects<'a>(
    args: &Args,
    inputs: &'a Inputs,
    plan: &Plan,
    torch: Option<&'a mut Torch>,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<Subject<'a>>> {
    let context = inputs.context.clone().isa(Isa::from_env()?).parallel(args.threads > 1);
    let spec = inputs.spec_for(plan.phase, plan.n)?;
    let mut subjects = Vec::new();
    for variant in OURS {
        if variant.name == baseline(plan.phase) || args.wants(variant.name) {
            let subject = variant.subject(inputs, &context, plan, &spec);
            subjects.push(subject.with_context(|| format!("{} at n = {}", variant.name, plan.n))?);
        }
    }
    let rounds = plan.repetitions.min(args.peer_repetitions.into());
    for (name, path) in CANDLE.into_iter().zip([Path::Flash, Path::MatMul]) {
        match path.refuses(inputs, plan.phase, plan.n) {
            _ if !args.wants(name) => {}
            Some(note) => notes.push(note),
            None => {
                let attention = Box::new(Candle::new(path, plan.phase, inputs, plan.n)?);
                subjects.push(Subject { name, attention, rounds, tolerance: F32, compared: true });
            }
        }
    }
    if let Some(torch) = torch {
        anyhow::ensure!(
            inputs.is_causal(),
            "--torch: expected a model whose layers are causal, got one with other masks"
        );
        let attention = Box::new(Sdpa { torch, shape: inputs.shape() });
        subjects.push(Subject { name: "torch-sdpa", attention, rounds, tolerance: None, compared: false });
    }
    Ok(subjects)
}

fn print_header(report: &Report, inputs: &Inputs) {
    let shape = inputs.shape();
    println!(
        "machine      {}; {}; level {}, {} threads",
        report.cpu, report.date, report.level, report.threads
    );
    println!(
        "input        {}: {} heads, {} kv heads, head_dim {}; {} layers, {} windows",
        inputs.name,
        shape.heads(),
        shape.kv_heads(),
        shape.head_dim(),
        report.layers,
        report.windows
    );
    println!("approximate  {}", report.settings);
    if let Some(torch) = &report.torch {
        println!("torch        {torch}");
    }
    println!("{}", table::header());
}
