//! Files without a runnable model: one line gives the reason.

use std::collections::BTreeMap;

use incant::runtime::{LoadOptions, Model};
use incant::text::Special;
use tempfile::NamedTempFile;

use crate::build::{Builder, Item};
use crate::support::fixtures::load_options;
use crate::support::subjects::{self, Subject};

use super::tiny::{self, Tiny, VOCAB, Weight, Yarn};

fn options(subject: &Subject) -> LoadOptions {
    LoadOptions {
        kv_memory: None,
        backend: subject.backend.clone(),
        profiles: BTreeMap::new(),
        ..load_options()
    }
}

fn load(subject: &Subject, file: &NamedTempFile) -> Result<Model, String> {
    Model::load("tiny", file.path(), &options(subject)).map_err(|error| error.to_string())
}

/// Returns each executor's error for a file, without its path, which must come first.
fn refusal(builder: &Builder) -> String {
    let file = tiny::written(builder);
    let path = format!("{}: ", file.path().display());
    let mut causes = subjects::both().map(|subject| {
        let line = load(subject, &file).map(|_| ()).expect_err("is refused");
        assert!(!line.contains('\n'), "{subject}: {line:?}");
        let cause = line.strip_prefix(&path);
        let cause = cause.unwrap_or_else(|| panic!("{subject}: {line}"));
        assert!(
            !cause.contains(&path),
            "{subject}: the path comes twice: {line}"
        );
        cause.to_owned()
    });
    let cause = causes.next().expect("there are executors");
    assert!(causes.all(|other| other == cause), "{cause}");
    cause
}

/// Returns the error for `model` after a change of its tensors.
fn changed(model: &Tiny, change: impl FnOnce(&mut BTreeMap<String, Weight>)) -> String {
    let mut tensors = model.tensors();
    change(&mut tensors);
    refusal(&model.file(&tensors))
}

/// Returns the error for `model` with an additional metadata entry.
fn with(model: &Tiny, key: &str, item: Item<'_>) -> String {
    refusal(&model.file(&model.tensors()).with(key, item))
}

#[test]
fn a_tiny_model_is_a_whole_model() {
    for model in Tiny::all() {
        let file = model.written(&model.tensors());
        for subject in subjects::both() {
            let loaded = load(subject, &file).expect("loads");
            assert_eq!(loaded.spec().architecture, model.architecture);
            assert_eq!(loaded.spec().vocab, VOCAB);
            assert_eq!(loaded.context(), 4096);
            let ids = loaded.tokenizer().encode("Héllo, 1", Special::Plain);
            assert_eq!(loaded.tokenizer().decode(&ids, false), "Héllo, 1");
        }
    }
}

#[test]
fn the_context_that_is_served_is_the_specs() {
    let model = Tiny::phi3();
    let file = model.written(&model.tensors());
    let served = |context| {
        let options = LoadOptions {
            context,
            ..options(subjects::native())
        };
        let loaded = Model::load("tiny", file.path(), &options).expect("loads");
        (loaded.context(), loaded.spec().served_context)
    };
    assert_eq!(served(Some(64)), (64, 64));
    assert_eq!(served(None), (4096, 4096));
    assert_eq!(served(Some(1 << 20)), (4096, 4096));
}

#[test]
fn an_architecture_nobody_knows_is_named_beside_those_known() {
    let model = |architecture| Tiny {
        architecture,
        ..Tiny::llama()
    };
    assert_eq!(
        changed(&model("mamba"), |_| ()),
        "architecture 'mamba' is not supported (supported: gemma2, gemma3, granite, llama, mistral3, olmo2, phi3, qwen2, qwen3)"
    );
    assert_eq!(
        changed(&model("a\nb"), |_| ()),
        r"architecture 'a\nb' is not supported (supported: gemma2, gemma3, granite, llama, mistral3, olmo2, phi3, qwen2, qwen3)"
    );
}

#[test]
fn a_missing_tensor_is_named() {
    for (model, name) in [
        (Tiny::llama(), "token_embd.weight"),
        (Tiny::llama(), "output_norm.weight"),
        (Tiny::llama(), "blk.2.ffn_down.weight"),
        (Tiny::qwen2(), "blk.1.attn_k.bias"),
        (Tiny::gemma3(), "blk.6.post_ffw_norm.weight"),
        (Tiny::phi3(), "blk.1.attn_qkv.weight"),
        (Tiny::phi3(), "blk.0.ffn_up.weight"),
        (Tiny::phi3(), "rope_factors_short.weight"),
        (Tiny::phi3(), "rope_factors_long.weight"),
        (Tiny::qwen3(), "blk.2.attn_q_norm.weight"),
    ] {
        let line = changed(&model, |tensors| {
            tensors.remove(name).expect("was there");
        });
        assert_eq!(line, format!("tensor `{name}` is missing"));
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let model = Tiny::llama();
    let reshaped = |name: &'static str, shape: &'static [usize]| {
        changed(&model, move |tensors| {
            let weight = tensors.get_mut(name).expect("is there");
            weight.shape = shape.to_vec();
        })
    };
    assert_eq!(
        reshaped("blk.1.attn_k.weight", &[64, 32]),
        "tensor 'blk.1.attn_k.weight' has shape [64, 32], expected [32, 64]"
    );
    assert_eq!(
        reshaped("blk.0.attn_norm.weight", &[1, 64]),
        "tensor 'blk.0.attn_norm.weight' has shape [1, 64], expected [64]"
    );
    assert_eq!(
        reshaped("token_embd.weight", &[VOCAB * 64]),
        format!(
            "tensor 'token_embd.weight' has shape [{}], expected [300, 64]",
            VOCAB * 64
        )
    );
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let llama = Tiny::llama();
    let needs = |model: &Tiny, key, item, what: &str| {
        let line = with(model, key, item);
        let architecture = model.architecture;
        assert_eq!(
            line,
            format!("this {architecture} model needs {what}, which is not supported")
        );
    };
    needs(
        &llama,
        "llama.expert_count",
        Item::U32(8),
        "a mixture of experts",
    );
    needs(
        &Tiny::qwen3(),
        "qwen3.expert_count",
        Item::U32(128),
        "a mixture of experts",
    );
    needs(
        &Tiny::qwen2(),
        "qwen2.rope.scaling.type",
        Item::Str("dynamic"),
        "rope scaling of type 'dynamic'",
    );
    needs(
        &llama,
        "llama.rope.scaling.type",
        Item::Str("long\nrope"),
        r"rope scaling of type 'long\nrope'",
    );
    needs(
        &llama,
        "llama.attention.value_length",
        Item::U32(8),
        "value heads that are not as wide as key heads",
    );
    needs(
        &Tiny::granite(),
        "granite.rope.scaling.finetuned",
        Item::Bool(false),
        "attention without a rope",
    );
    needs(
        &Tiny {
            rope_factors: true,
            ..Tiny::phi3()
        },
        "phi3.rope.scaling.type",
        Item::Str("longrope"),
        "two kinds of rope factors",
    );
}

#[test]
fn a_tensor_that_would_go_unused_is_refused() {
    let bias = |name: &'static str, model: &Tiny| {
        changed(model, |tensors| {
            let bias = tensors["output_norm.weight"].clone();
            tensors.insert(name.to_owned(), bias);
        })
    };
    for (name, model) in [
        ("blk.0.attn_output.bias", Tiny::llama()),
        ("blk.0.attn_q_norm.weight", Tiny::qwen2()),
        ("output_norm.bias", Tiny::llama()),
        ("blk.7.attn_norm.weight", Tiny::gemma3()),
        ("blk.0.attn_norm.weight", Tiny::olmo2()),
        ("blk.0.attn_qkv.bias", Tiny::phi3()),
        ("blk.0.ffn_gate.weight", Tiny::phi3()),
    ] {
        let architecture = model.architecture;
        assert_eq!(
            bias(name, &model),
            format!("this {architecture} model needs the tensor '{name}', which is not supported")
        );
    }
}

#[test]
fn odd_shapes_are_refused_and_not_believed() {
    // No dimensions at all, although the number of rows is needed.
    let model = Tiny::llama();
    let mut tensors = model.tensors();
    tensors.remove("token_embd.weight");
    let scalar = model.file(&tensors);
    assert_eq!(
        refusal(&scalar.tensor("token_embd.weight", &[], 0, vec![0; 4])),
        "tensor 'token_embd.weight' has shape [], expected [0, 64]"
    );
    // Fewer rows than the tokenizer has tokens.
    let line = changed(
        &Tiny {
            tied: true,
            ..model
        },
        |tensors| {
            let embedding = tensors.get_mut("token_embd.weight").expect("is there");
            embedding.shape[0] = VOCAB - 1;
            embedding.bytes.truncate((VOCAB - 1) * 64 * 4);
        },
    );
    assert_eq!(
        line,
        "tokenizer.ggml.tokens = 300 tokens makes no sense: the embedding has fewer rows"
    );
}

#[test]
fn senseless_metadata_is_refused() {
    let sense = |model: Tiny, message: &str| {
        let line = changed(&model, |_| ());
        assert_eq!(line, message);
    };
    let (llama, gemma3) = (Tiny::llama(), Tiny::gemma3());
    sense(
        Tiny {
            kv_heads: 3,
            ..llama.clone()
        },
        "llama.attention.head_count_kv = 3 makes no sense: it must divide head_count",
    );
    sense(
        Tiny {
            rope_dims: Some(7),
            ..llama.clone()
        },
        "llama.rope.dimension_count = 7 makes no sense: it must be even and at most a head's width",
    );
    sense(
        Tiny {
            rope_dims: Some(18),
            ..llama.clone()
        },
        "llama.rope.dimension_count = 18 makes no sense: it must be even and at most a head's width",
    );
    sense(
        Tiny {
            rope_linear: Some(-2.0),
            ..llama.clone()
        },
        "llama.rope.scaling.factor = -2 makes no sense: it must be positive",
    );
    sense(
        Tiny {
            eps: f32::NAN,
            ..llama.clone()
        },
        "llama.attention.layer_norm_rms_epsilon = NaN makes no sense: it must be positive",
    );
    let factor = |factor| {
        let yarn = Tiny::olmo3().rope_yarn.expect("it has YaRN");
        Some(Yarn { factor, ..yarn })
    };
    sense(
        Tiny {
            rope_yarn: factor(0.5),
            ..Tiny::qwen3()
        },
        "qwen3.rope.scaling.factor = 0.5 makes no sense: YaRN makes a context longer",
    );
    sense(
        Tiny {
            attention_cap: Some(-1.0),
            ..Tiny::gemma2()
        },
        "gemma2.attn_logit_softcapping = -1 makes no sense: it must be positive",
    );
    assert_eq!(
        with(&llama, "llama.rope.scaling.attn_factor", Item::F32(-1.0)),
        "llama.rope.scaling.attn_factor = -1 makes no sense: it must be positive"
    );
    let pattern = Tiny::gemma2();
    let listed = Item::Raw(
        9,
        [
            7u32.to_le_bytes().to_vec(),
            vec![2, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        ]
        .concat(),
    );
    assert_eq!(
        with(&pattern, "gemma2.attention.sliding_window_pattern", listed),
        "gemma2.attention.sliding_window_pattern = a list of 2 makes no sense: it must have an \
         entry for each layer"
    );
    sense(
        Tiny {
            window: 0,
            ..gemma3
        },
        "metadata key `gemma3.attention.sliding_window` is missing",
    );
    let bare = Builder::new().with("general.architecture", Item::Str("llama"));
    assert_eq!(
        refusal(&bare),
        "metadata key `llama.embedding_length` is missing"
    );
}

#[test]
fn frequency_factors_must_fit_the_rope() {
    let model = Tiny {
        rope_factors: true,
        ..Tiny::llama()
    };
    let mut tensors = model.tensors();
    let factors = tensors.remove("rope_freqs.weight").expect("was drawn");
    let file = model.file(&tensors);
    assert_eq!(
        refusal(
            &file
                .clone()
                .tensor("rope_freqs.weight", &[8], 1, vec![0; 16])
        ),
        "this llama model needs rope frequencies of type F16, which is not supported"
    );
    let short = factors.bytes[..4 * 7].to_vec();
    assert_eq!(
        refusal(&file.tensor("rope_freqs.weight", &[7], 0, short)),
        "tensor 'rope_freqs.weight' has shape [7], expected [8]"
    );
}

#[test]
fn tensors_at_odd_places_end_no_program() {
    let model = Tiny::llama();
    let file = Builder::new().with("general.alignment", Item::U32(1));
    let file = file.tensor("unrelated", &[3], 24, vec![0; 3]);
    assert_eq!(
        refusal(&model.continued(file, &model.tensors())),
        "general.alignment is 1, not a power of two from 8 on"
    );
}

/// Each file of a split model, including one that has all metadata and no tensors.
#[test]
fn a_part_of_a_split_model_is_named_as_one() {
    let split = |file: Builder, no: u16| {
        let total = 11i32.to_le_bytes().to_vec();
        file.with("split.no", Item::U16(no))
            .with("split.count", Item::U16(2))
            .with("split.tensors.count", Item::Raw(5, total))
    };
    let model = Tiny::llama();
    let tensors = model.tensors();
    for (file, part) in [
        (split(model.file(&tensors), 0), 1),
        (split(model.file(&BTreeMap::new()), 0), 1),
        (split(Builder::new(), 1), 2),
    ] {
        let told = refusal(&file);
        assert!(
            told.starts_with(&format!("part {part} of 2 of a split model; merge")),
            "{told}"
        );
    }
    let whole = model.file(&tensors).with("split.count", Item::U16(1));
    assert!(load(subjects::native(), &tiny::written(&whole)).is_ok());
    let odd = model.file(&tensors).with("split.count", Item::Str("2"));
    assert!(refusal(&odd).contains("`split.count` should be an unsigned integer"));
}

/// A model with an unusable chat template is served as one without.
#[test]
fn a_chat_template_that_cannot_be_run_leaves_the_model_without_one() {
    let model = Tiny::llama();
    let with = |template: &str| {
        let key = "tokenizer.chat_template";
        let file = model.file(&model.tensors()).with(key, Item::Str(template));
        let file = tiny::written(&file);
        let model = load(subjects::native(), &file).expect("it is served");
        // An empty template in a file counts as none.
        let is_told = model.template().is_none() && !template.trim().is_empty();
        let told = model.template_problem().unwrap_or_default();
        let names_it = told.starts_with(&*file.path().display().to_string());
        assert_eq!(names_it, is_told, "{template}: {told}");
        assert!(!told.contains('\n'), "{told}");
        model
            .template()
            .map(|template| template.source().to_owned())
    };
    for broken in [
        "",
        " \n",
        "{% for x in %}",
        "{{ messages[0].no_method() }}",
        "{{ messages | no_filter }}",
        "{# nothing #}",
        "{{ 1 // 0 }}",
    ] {
        assert_eq!(with(broken), None, "{broken}");
    }
    // A template that refuses the plainest question may accept others.
    for good in ["{{ messages[0].content }}", "{{ raise_exception('No.') }}"] {
        assert_eq!(with(good).as_deref(), Some(good));
    }
}

#[test]
fn a_rope_factor_is_linear_under_either_name() {
    let model = Tiny::llama();
    let scale = |entries: &[(&str, Item<'_>)]| {
        let mut file = model.file(&model.tensors());
        for (key, item) in entries {
            file = file.with(&format!("llama.rope.{key}"), item.clone());
        }
        let loaded = load(subjects::native(), &tiny::written(&file)).expect("loads");
        loaded.spec().ropes[0].scale
    };
    assert_eq!(scale(&[]), 1.0);
    assert_eq!(scale(&[("scaling.factor", Item::F32(4.0))]), 4.0);
    assert_eq!(scale(&[("scale_linear", Item::F32(4.0))]), 4.0);
    assert_eq!(scale(&[("scaling.factor", Item::F32(0.0))]), 1.0);
    let none = ("scaling.type", Item::Str("none"));
    assert_eq!(scale(&[none, ("scaling.factor", Item::F32(4.0))]), 1.0);
}
