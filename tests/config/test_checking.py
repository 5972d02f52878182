from __future__ import annotations

import pytest

from mllm.config.reading import read_config
from mllm.errors import ConfigError


def sentence(path, *overrides) -> str:
    with pytest.raises(ConfigError) as excinfo:
        read_config(path, overrides)
    return str(excinfo.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "model_args = dict(\n    lora_r=8,\n    lora_rank=16,\n)",
            "run.py:4: unknown key 'lora_rank' in model_args: did you mean 'lora_r'?",
        ),
        (
            'model_args = {\n    "max_lenght": 16,\n}',
            "run.py:3: unknown key 'max_lenght' in model_args: did you mean 'max_length'?",
        ),
        (
            "data_args = dict(trian=None)",
            "run.py:2: unknown key 'trian' in data_args: did you mean 'train'?",
        ),
        (
            "data_args = dict(train=dict(sizes=3))",
            "run.py:2: unknown key 'sizes' in data_args.train (Phantoms): did you mean 'size'?",
        ),
        (
            "data_args = dict(train=dict(type='Phantom'))",
            "run.py:2: unknown type 'Phantom' in registry datasets: did you mean 'Phantoms'? (data_args.train)",
        ),
        (
            "data_args = dict(test=dict(type='Rows', image_folder='a'))",
            "run.py:2: data_args.test (Rows) needs the key 'data_path'",
        ),
        (
            "data_args = dict(test=dict(size=3))",
            "run.py:2: data_args.test must be a dict with a 'type', not {'size': 3}",
        ),
        ("data_args = dict(test=3)", "run.py:2: data_args.test must be a dict or None, not 3"),
        ("data_args = dict(on_error='ignore')", "run.py:2: data_args.on_error must be 'raise' or 'skip', not 'ignore'"),
        (
            "data_args = dict(tokens_per_micro_batch=0)",
            "run.py:2: data_args.tokens_per_micro_batch must be at least 1, not 0",
        ),
        (
            "data_args = dict(gen_kwargs=dict(max_tokens=64))",
            "run.py:2: unknown key 'max_tokens' in data_args.gen_kwargs: did you mean 'max_new_tokens'?",
        ),
        (
            "data_args = dict(gen_kwargs=dict(\n  max_new_tokens='64'))",
            "run.py:3: data_args.gen_kwargs.max_new_tokens must be an integer, not '64'",
        ),
        (
            "data_args = dict(gen_kwargs=dict(top_p=1.5))",
            "run.py:2: data_args.gen_kwargs.top_p must be at most 1, not 1.5",
        ),
        ("training_args = dict(save_steps=-1)", "run.py:2: training_args.save_steps must be greater than 0, not -1"),
        (
            "data_args = dict(test=dict(type='Joined', datasets=[\n  dict(type='Phantoms', sise=1)]))",
            "run.py:3: unknown key 'sise' in data_args.test.datasets.0 (Phantoms): did you mean 'size'?",
        ),
        (
            "data_args = dict(test=dict(type='Rows', data_path='a', transforms=[\n  dict(type='Flop')]))",
            "run.py:3: unknown type 'Flop' in registry transforms: did you mean 'Flip'? (data_args.test.transforms.0)",
        ),
        (
            "objectives = dict(next_token=dict(type='NextTokn'))",
            "run.py:2: unknown type 'NextTokn' in registry objectives: "
            "did you mean 'NextToken'? (objectives.next_token)",
        ),
        (
            "objectives = dict(next_token=dict(type='NextToken', wieght=1.0))",
            "run.py:2: unknown key 'wieght' in objectives.next_token (NextToken): did you mean 'weight'?",
        ),
        (
            "training_args = dict(\n    evaluation_strategy='no')",
            "run.py:3: unknown key 'evaluation_strategy' in training_args: did you mean 'eval_strategy'?",
        ),
        (
            "training_args = dict(overwrite_output_dir=True)",
            "run.py:2: unknown key 'overwrite_output_dir' in training_args: it no longer exists; a folder that is "
            "not empty is never overwritten, use --resume or another output_dir",
        ),
        (
            "training_args = dict(per_gpu_train_batch_size=1)",
            "run.py:2: unknown key 'per_gpu_train_batch_size' in training_args: "
            "did you mean 'per_device_train_batch_size'?",
        ),
        (
            "training_args = dict(warmup_ratio=0.03)",
            "run.py:2: unknown key 'warmup_ratio' in training_args: write the fraction as warmup_steps: a value below "
            "1 is a fraction of all steps",
        ),
        (
            "training_args = dict(learning_rat=1)",
            "run.py:2: unknown key 'learning_rat' in training_args: did you mean 'learning_rate'?",
        ),
        (
            "training_args = dict(zzz=1)",
            "run.py:2: unknown key 'zzz' in training_args; known are the arguments of transformers.TrainingArguments",
        ),
        (
            "training_args = dict(learning_rate='1e-4')",
            "run.py:2: training_args.learning_rate must be a number, not '1e-4'",
        ),
        ("training_args = dict(max_steps=1e3)", "run.py:2: training_args.max_steps must be an integer, not 1000.0"),
        (
            "training_args = dict(gradient_checkpointing=1)",
            "run.py:2: training_args.gradient_checkpointing must be True or False or None, not 1",
        ),
        (
            "training_args = dict(optim='adamw_troch')",
            "run.py:2: training_args.optim does not know 'adamw_troch': did you mean 'adamw_torch'?",
        ),
        (  # adalomo, which is nearer, is refused
            "training_args = dict(optim='adamm')",
            "run.py:2: training_args.optim does not know 'adamm': did you mean 'adamw_torch'?",
        ),
        (  # auto_find_batch_size, which is the most similar, is refused
            "training_args = dict(batch_size=2)",
            "run.py:2: unknown key 'batch_size' in training_args: did you mean 'per_device_train_batch_size'?",
        ),
        (  # hub_model_id is refused
            "training_args = dict(hub_model=2)",
            "run.py:2: unknown key 'hub_model' in training_args; known are the arguments of "
            "transformers.TrainingArguments",
        ),
        (
            "training_args = dict(gradient_accumulation_steps=0)",
            "run.py:2: training_args.gradient_accumulation_steps must be an integer of at least 1, not 0",
        ),
        (
            "training_args = dict(learning_rate=-1)",
            "run.py:2: training_args.learning_rate must be 0 or more and finite, not -1",
        ),
        (
            "training_args = dict(weight_decay=float('nan'))",
            "run.py:2: training_args.weight_decay must be 0 or more and finite, not nan",
        ),
        (
            "training_args = dict(dataloader_num_workers=-1)",
            "run.py:2: training_args.dataloader_num_workers must be 0 or more and finite, not -1",
        ),
        ("training_args = dict(seed=-1)", "run.py:2: training_args.seed must be 0 or more and finite, not -1"),
        (
            "model_args = dict(chat_template='mine.jinja')",
            "run.py:2: model_args.chat_template must be the text of a Jinja template, with {{ or {%, and not the name "
            "of a file",
        ),
        (
            "training_args = dict(seed=2**32)",
            "run.py:2: training_args.seed must be at most 4294967295, not 4294967296",
        ),
        (
            "training_args = dict(data_seed=-1)",
            "run.py:2: training_args.data_seed must be 0 or more and finite, not -1",
        ),
        (
            "data_args = dict(gen_kwargs=dict(temperature=0.7))",
            "run.py:2: data_args.gen_kwargs.temperature has no effect without do_sample=True: set that too, or "
            "remove it",
        ),
        (
            "training_args = dict(ddp_timeout=0)",
            "run.py:2: training_args.ddp_timeout must be an integer of at least 1, not 0",
        ),
        (
            "training_args = dict(dataloader_prefetch_factor=0)",
            "run.py:2: training_args.dataloader_prefetch_factor must be an integer of at least 1, not 0",
        ),
        (
            "training_args = dict(eval_delay=-1)",
            "run.py:2: training_args.eval_delay must be 0 or more and finite, not -1",
        ),
        (
            "training_args = dict(log_level='inf')",
            "run.py:2: training_args.log_level does not know 'inf': did you mean 'info'?",
        ),
        (
            "name = ''",
            "run.py:2: name='' cannot be the name of a folder, and runs are written to exp/<name>; "
            "set training_args.output_dir to write to another folder",
        ),
        (
            "name = '../other'",
            "run.py:2: name='../other' cannot be the name of a folder, and runs are written to exp/<name>; "
            "set training_args.output_dir to write to another folder",
        ),
        ("model_args = dict(lora_r='16')", "run.py:2: model_args.lora_r must be an integer or None, not '16'"),
        ("model_args = dict(lora_r=True)", "run.py:2: model_args.lora_r must be an integer or None, not True"),
        ("model_args = dict(lora_r=0)", "run.py:2: model_args.lora_r must be at least 1, not 0"),
        ("model_args = dict(max_length=-1)", "run.py:2: model_args.max_length must be at least 1, not -1"),
        ("model_args = dict(max_length=None)", "run.py:2: model_args.max_length must be an integer, not None"),
        ("model_args = dict(lora_dropout=1.0)", "run.py:2: model_args.lora_dropout must be less than 1, not 1.0"),
        ("model_args = dict(lora_alpha=0)", "run.py:2: model_args.lora_alpha must be greater than 0, not 0"),
        ("model_args = dict(load_in_4bit='yes')", "run.py:2: model_args.load_in_4bit must be True or False, not 'yes'"),
        (
            "model_args = dict(lora_target='(q_proj')",
            "run.py:2: model_args.lora_target must be 'language', 'vision', 'all' or a regular expression; '(q_proj' "
            "is not a valid one: missing ), unterminated subpattern at position 0",
        ),
        ("hardware = dict(bf61=True)", "run.py:2: unknown key 'bf61' in hardware: did you mean 'bf16'?"),
        ("hardware = dict(bf16=1)", "run.py:2: hardware.bf16 must be True or False, not 1"),
        (
            "model_arg = dict(lora_r=3)",
            "run.py:2: unknown key 'model_arg' at the top level: did you mean 'model_args'? "
            "(helper variables begin with '_')",
        ),
        ("export_args = dict(merge=True)", "run.py:2: unknown key 'merge' in export_args: did you mean 'merged'?"),
        ("export_args = dict(merged=1)", "run.py:2: export_args.merged must be True or False, not 1"),
        (
            "data_args = dict(compute_metric='acuracy')",
            "run.py:2: unknown type 'acuracy' in registry metrics: did you mean 'accuracy'? (data_args)",
        ),
        ("data_args = dict(test=dict(type=3))", "run.py:2: data_args.test.type must be text, not 3"),
        ("name = 3", "run.py:2: name must be text, not 3"),
        ("tiny = 1", "run.py:2: tiny must be True or False, not 1"),
        ("hardware = 3", "run.py:2: hardware must be a dict, not 3"),
    ],
)
def test_sentences(write, bases, lines, expected):
    assert sentence(write(bases + lines + "\n")) == expected


def test_a_wrong_key_of_a_base_names_the_base(write, bases):
    write('model_args = dict(\n    type="medgemma",\n    model_name="ckpt/medgemma-4b-it",\n)\n', "model.py")
    assert sentence(write(bases)) == (
        "model.py:3: unknown key 'model_name' in model_args: did you mean 'model_name_or_path'?"
    )


def test_a_wrong_key_of_the_command_line(write, bases):
    expected = "--cfg-options: unknown key 'lora_rank' in model_args: did you mean 'lora_r'?"
    assert sentence(write(bases), "model_args.lora_rank=8") == expected


def test_a_missing_key(write):
    text = "model_args = dict(\n    type='medgemma')\n"
    assert sentence(write(text)) == "run.py:1: model_args needs the key 'model_name_or_path'"
    message = "run.py: model_args needs the key 'type' (a base in _base_ usually has it)"
    assert sentence(write("training_args = dict()\n")) == message


def test_a_field_that_no_dataset_reads_names_its_line(write, bases):
    split = "data_args = dict(test=dict(type='VQADataset', data_path='a.json', columns=dict(\n"
    split += "    image='file',\n    modalty='mod')))\n"
    expected = "run.py:4: unknown field 'modalty' in data_args.test.columns (VQADataset): did you mean 'modality'?"
    assert sentence(write(bases + split)) == expected


def test_the_patient_column_has_one_name(write, bases):
    split = "dict(type='TextQADataset', data_path='a.json', {})"
    for old in ("group_field", "patient_column"):
        config = read_config(write(bases + f"data_args = dict(test={split.format(old + '=' + repr('mrn'))})\n"))
        assert config.data_args.test == {"type": "TextQADataset", "data_path": "a.json", "patient_column": "mrn"}
    both = f"data_args = dict(test={split.format('group_field=1, patient_column=2')})\n"
    with pytest.raises(ConfigError, match="has both 'group_field' and 'patient_column'"):
        read_config(write(bases + both))
    both = "data_args = dict(test=dict(type='VQADataset', data_path='a.json', columns=dict(patient='a'),\n"
    with pytest.raises(ConfigError, match=r"has both columns\['patient'\] and 'patient_column' \(run.py:3\)"):
        read_config(write(bases + both + "    patient_column='b'))\n"))


def test_filename_is_an_alias_of_data_path(write, bases):
    config = read_config(write(bases + "data_args = dict(test=dict(type='Rows', filename='a.json'))\n"))
    assert config.data_args.test == {"type": "Rows", "data_path": "a.json"}
    text = "data_args = dict(test=dict(type='Rows',\n    filename='a.json',\n    data_path='b.json'))\n"
    assert sentence(write(bases + text)) == (
        "run.py:3: data_args.test has both 'filename' and 'data_path' (run.py:4), which mean the same: keep 'data_path'"
    )


def test_keys_left_over_from_a_base(write, bases):
    text = "data_args = dict(train=dict(\n    type='Rows', data_path='a.json'))\n"
    assert sentence(write(bases + text)) == (
        "data.py:2: 'size', 'tasks' in data_args.train come from this base: the type is now 'Rows' (run.py:3), "
        "which does not accept them: add _delete_=True to data_args.train in run.py"
    )
    text = "data_args = dict(train=dict(_delete_=True, type='Rows', data_path='a.json'))\n"
    assert read_config(write(bases + text)).data_args.train == {"type": "Rows", "data_path": "a.json"}


def test_keys_left_over_on_the_command_line(write, bases):
    options = ["data_args.train.type=Rows", "data_args.train.data_path=a.json"]
    message = sentence(write(bases), *options)
    assert message.endswith("which does not accept them: add data_args.train._delete_=True to --cfg-options")
    config = read_config(write(bases), [*options, "data_args.train._delete_=True"])
    assert config.data_args.train == {"type": "Rows", "data_path": "a.json"}


def test_an_unknown_key_of_a_replaced_dict_names_its_own_line(write, bases):
    text = "data_args = dict(train=dict(_delete_=True, type='Rows', data_path='a.json', tasks=()))\n"
    assert sentence(write(bases + text)).startswith("run.py:2: unknown key 'tasks' in data_args.train (Rows)")


def test_a_dict_over_none(write, bases):
    write("data_args = dict(train=None)\n", "data.py")
    message = sentence(write(bases + "data_args = dict(train=dict(type='Phantoms'))\n"))
    assert message == (
        "run.py:2: data_args.train is a dict here and None in its base (data.py:1): add _delete_=True to the dict"
    )
    config = read_config(write(bases + "data_args = dict(train=dict(_delete_=True, type='Phantoms'))\n"))
    assert config.data_args.train == {"type": "Phantoms"}


def test_an_objective_set_to_none_is_absent(write, bases):
    write("objectives = dict(a=dict(type='NextToken'), b=dict(type='NextToken', weight=0.5))\n", "objectives.py")
    text = bases.replace('"runtime.py"]', '"runtime.py", "objectives.py"]') + "objectives = dict(a=None)\n"
    assert read_config(write(text)).objectives == {"b": {"type": "NextToken", "weight": 0.5}}
