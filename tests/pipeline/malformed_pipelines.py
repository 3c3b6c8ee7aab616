"""Malformed pipelines: what to replace in a good one, by what, and every line that `edgepipe check` then prints.

A problem begins with its line and column; `{base}` is the folder of the file.
"""
# ruff: noqa: E501 - a message stands on one line, as the user sees it
# fmt: off

GOOD = """\
name: p
model: edgepipe.zoo:small_cnn
data: edgepipe.data:digits
task: classification
stages:
  - train: {epochs: 2}
  - prune: {sparsity: 0.5}
  - quantize: {epochs: 2}
  - convert
  - validate:
      devices: [host, nucleo-l4r5zi]
      budget: {accuracy: 90 %}
"""
MODEL, DATA, TASK, BUDGET = "edgepipe.zoo:small_cnn", "edgepipe.data:digits", "task: classification", "{accuracy: 90 %}"
STAGES = GOOD[GOOD.index("stages:") :]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
TOP = "; allowed: allow_chance, data, description, model, name, seed, stages, task"
NOT_ONE = " a pipeline is a mapping with name, description, model, data, task, seed, allow_chance, stages; found "
MODELS = "; expected a .keras or .h5 model, a .tflite model, or a SavedModel folder"
METRICS = "accuracy, accuracy_drop, host, macs, nonzero_parameters, nucleo-l4r5zi, parameters, size, size_deflate, size_zstd, sparsity"

CASES: list[tuple[str, str, str, list[str]]] = [
    ("unknown key", "task:", "tsak:", [
        "4:1: tsak: unknown option; did you mean 'task'?",
        "6:5: stages.0.train: 'train' needs `task:` at the top of the file",
    ]),
    ("a key with no near name", "name: p", "name: p\nzoo: 1", [
        "2:1: zoo: unknown option" + TOP,
    ]),
    ("duplicate key", "name: p", "name: p\nname: q", [
        "2:1: name: duplicate key; the first is on line 1",
    ]),
    ("duplicate option", "train: {epochs: 2}", "train: {epochs: 2, epochs: 3}", [
        "6:24: stages.0.train.epochs: duplicate key; the first is on line 6",
    ]),
    ("required keys", GOOD, "description: nothing else\n", [
        "1:1: model: is required but missing",
        "1:1: name: is required but missing",
        "1:1: stages: is required but missing",
    ]),
    ("unknown stage", "- convert", "- convret", [
        "9:5: stages.3.convret: unknown stage; did you mean 'convert'?",
    ]),
    ("a teacher that is none", "train: {epochs: 2}", "train: {epochs: 2, teacher: modle}", [
        "6:33: stages.0.train.teacher: no earlier stage, file or module:function 'modle'; did you mean 'model'?",
    ]),
    ("a teacher that comes later", "prune: {sparsity: 0.5}", "prune: {teacher: quantize}", [
        "7:22: stages.1.prune.teacher: no earlier stage, file or module:function 'quantize'; allowed: model, train",
    ]),
    ("a teacher without a name", "prune: {sparsity: 0.5}", "prune: {teacher: {logits: }}", [
        "7:22: stages.1.prune.teacher: names no teacher: `model:` is an earlier stage, a model file or module:function",
    ]),
    ("a teacher of an unknown kind", "prune: {sparsity: 0.5}", "prune: {teacher: {model: train, logit: {}}}", [
        "7:37: stages.1.prune.teacher.logit: unknown option; did you mean 'logits'?",
    ]),
    ("a temperature of nothing", "prune: {sparsity: 0.5}", "prune: {teacher: {model: train, logits: {temperature: 0}}}", [
        "7:59: stages.1.prune.teacher.logits.temperature: should be greater than 0; found the number 0",
    ]),
    ("the same teacher twice", "prune: {sparsity: 0.5}", "prune: {teacher: [train, train]}", [
        "7:22: stages.1.prune.teacher: 'train' is listed twice",
    ]),
    ("distil without a student", "prune: {sparsity: 0.5}", "distill: {epochs: 2}", [
        "7:14: stages.1.distill.student: is required but missing",
    ]),
    ("distil a student that is none", "prune: {sparsity: 0.5}", "distill: {student: \"edgepipe.zoo:small\"}", [
        "7:24: stages.1.distill.student: module 'edgepipe.zoo' has no 'small'",
    ]),
    ("compile without a device", "- convert", "- convert\n  - compile", [
        "10:5: stages.4.compile.device: is required but missing",
    ]),
    ("compile for a device without an Ethos-U", "- convert", "- convert\n  - compile: {device: host}", [
        "10:23: stages.4.compile.device: 'host' has no NPU that Vela compiles for; devices with one: {ethos}",
    ]),
    ("compile for a device that is none", "- convert", "- convert\n  - compile: {device: ethos-u55-12}", [
        "10:23: stages.4.compile.device: unknown device 'ethos-u55-12'; did you mean 'ethos-u55-128'? (the path of a .yaml file is also allowed)",
    ]),
    ("compile before convert", "- convert", "- compile: {device: ethos-u55-128}\n  - convert", [
        "9:5: stages.3.compile: 'compile' takes a TFLite model, but 'quantize' before it gives a fake-quant model; put `convert` before it",
    ]),
    ("convert after compile", "- convert", "- convert\n  - compile: {device: ethos-u55-128}\n  - convert: {as: again}", [
        "11:5: stages.5.convert: 'convert' takes a float Keras model, a fake-quant model, a SavedModel or a TFLite model, but 'compile' before it gives a compiled model; a compiled model can only be validated: move this stage before `compile`",
    ]),
    ("more than all operators", "{accuracy: 90 %}", "{host: {npu_operators: 120 %}}", [
        "12:38: stages.4.validate.budget.host.npu_operators: 120 % is 120.00 %; write '120 % %' or a fraction of one",
    ]),
    ("a share in bytes", "{accuracy: 90 %}", "{host: {npu_operators: 3 KiB}}", [
        "12:38: stages.4.validate.budget.host.npu_operators: 'KiB' is not a unit of fraction; allowed: %, point, points",
    ]),
    ("a stage of a later issue", "- convert", "- bundle", [
        "9:5: stages.3.bundle: unknown stage; allowed: cluster, compile, convert, deploy, distill, export, prune, quantize, train, validate",
    ]),
    ("a deployment without a device", "- validate:", "- deploy\n  - validate:", [
        "10:5: stages.4.deploy.to: is required but missing",
    ]),
    ("a latency without its unit", "- validate:", "- deploy: {to: [host:///a], latency: 5}\n  - validate:", [
        "10:40: stages.4.deploy.latency: '5' has no unit; allowed: s, ms, us, µs, ns, min",
    ]),
    ("bad addresses and a microcontroller", "- validate:", "- deploy: {to: [ssh://pi:secret@board/x, board, host:///a, host:///a], device: nucleo-l4r5zi}\n  - validate:", [
        "10:19: stages.4.deploy.to.0: 'ssh://pi:***@board/x': an address never holds a password; use a key, the agent (ssh-add) or ~/.ssh/config",
        "10:44: stages.4.deploy.to.1: 'board': no scheme; for example ssh://pi@raspberrypi/home/pi/app, ssh://alias/~/app, adb://SERIAL or host:///tmp/app",
        "10:62: stages.4.deploy.to.3: 'host:///a' is listed twice",
        "10:82: stages.4.deploy.device: nucleo-l4r5zi is a microcontroller (Armv7E-M), which runs no system that a model can be copied to; a model is built into its firmware",
    ]),
    ("unknown option", "sparsity: 0.5", "sparsty: 0.5", [
        "7:13: stages.1.prune.sparsty: unknown option; did you mean 'sparsity'?",
    ]),
    ("unknown device", "nucleo-l4r5zi", "nucleo-l4r5zl", [
        "11:23: stages.4.validate.devices.1: unknown device 'nucleo-l4r5zl'; did you mean 'nucleo-l4r5zi'? (the path of a .yaml file is also allowed)",
    ]),
    ("device file that is missing", "nucleo-l4r5zi", "gone.yaml", [
        "11:23: stages.4.validate.devices.1: {base}/gone.yaml: cannot be read: No such file or directory",
    ]),
    ("device file that is wrong", "nucleo-l4r5zi", "board.yaml", [
        "{base}/board.yaml:2:7: name: 'bord' must equal the name of its file, 'board'",
        "{base}/board.yaml:5:17: system.clock: '80' has no unit; allowed: Hz, kHz, MHz, GHz",
    ]),
    ("devices not a list", "[host, nucleo-l4r5zi]", "host", [
        "11:16: stages.4.validate.devices: should be a list; found the text 'host'",
    ]),
    ("a text for an integer", "train: {epochs: 2}", "train: {epochs: many}", [
        "6:21: stages.0.train.epochs: should be an integer; found the text 'many'",
    ]),
    ("a float for an integer", "train: {epochs: 2}", "train: {epochs: 2.5}", [
        "6:21: stages.0.train.epochs: should be an integer; found the number 2.5",
    ]),
    ("a boolean for an integer", "train: {epochs: 2}", "train: {epochs: true}", [
        "6:21: stages.0.train.epochs: should be an integer; found true",
    ]),
    ("a quoted number", "train: {epochs: 2}", "train: {epochs: '2'}", [
        "6:21: stages.0.train.epochs: should be an integer; found the text '2'",
    ]),
    ("nothing for an integer", "train: {epochs: 2}", "train: {epochs: }", [
        "6:20: stages.0.train.epochs: should be an integer; found nothing",
    ]),
    ("epochs 0", "train: {epochs: 2}", "train: {epochs: 0}", [
        "6:21: stages.0.train.epochs: should be greater than or equal to 1; found the number 0",
    ]),
    ("learning rate inf", "train: {epochs: 2}", "train: {learning_rate: .inf}", [
        "6:28: stages.0.train.learning_rate: should be a finite number; found the number inf",
    ]),
    ("sparsity 75", "0.5", "75", [
        "7:23: stages.1.prune.sparsity: should be less than 1; found the number 75; 75 % is written 0.75",
    ]),
    ("sparsity 175 %", "0.5", "175 %", [
        "7:23: stages.1.prune.sparsity: should be less than 1; found the number 1.75",
    ]),
    ("granularity", "sparsity: 0.5", "granularity: channels", [
        "7:26: stages.1.prune.granularity: found 'channels'; allowed: weight, channel, block MxN (outputs x inputs, as "
        "1x4), N:M (as 2:4); did you mean 'channel'?",
    ]),
    ("sparsity 1", "0.5", "1", [
        "7:23: stages.1.prune.sparsity: should be less than 1; found the number 1",
    ]),
    ("yes is a text", "sparsity: 0.5", "exclude_last: yes", [
        "7:27: stages.1.prune.exclude_last: should be true or false; found the text 'yes'",
    ]),
    ("misspelled choice", "sparsity: 0.5", "schedule: polynomal", [
        "7:23: stages.1.prune.schedule: found 'polynomal'; allowed: one_shot, constant, polynomial, cubic, iterative; did you mean 'polynomial'?",
    ]),
    ("two options at odds", "sparsity: 0.5", "sparsity: 0.5, initial_sparsity: 0.6", [
        "7:12: stages.1.prune: initial_sparsity (0.6) must be below sparsity (0.5)",
    ]),
    ("fused LSTMs in 16 bits", "- convert", "- convert: {scheme: int16x8, recurrent: fused}", [
        "9:14: stages.3.convert: recurrent fused: TFLite's fused LSTM has a kernel for int8, the scheme is int16x8; use scheme int8, or drop `recurrent` (--recurrent)",
    ]),
    ("a stream of fused LSTMs", "- convert", "- convert: {streaming: 2, recurrent: fused}", [
        "9:14: stages.3.convert: streaming and recurrent fused: a fused LSTM keeps its state inside the operator, not in inputs and outputs; drop one of them",
    ]),
    ("split outputs without a scale", "- convert", "- convert: {scheme: float16, split_outputs: true}", [
        "9:14: stages.3.convert: split_outputs: scheme float16 gives outputs no scale; use scheme int8, or drop split_outputs",
    ]),
    ("an unknown release", "- convert", "- convert: {runtime: torch==2.1}", [
        "9:24: stages.3.convert.runtime: runtime 'torch==2.1': unknown package 'torch'; allowed: ai-edge-litert, litert, tensorflow, tensorflow-cpu, tensorflow-lite, tflite-micro, tflite-runtime",
    ]),
    ("a release for mixed", "- convert", "- convert: {scheme: mixed, max_drop: 1 point, runtime: tflite-runtime==2.14}", [
        "9:14: stages.3.convert: `runtime`: `scheme: mixed` chooses forms for `device`; drop one of them",
    ]),
    ("scheme and input at odds", "- convert", "- convert: {scheme: float16, input: int8}", [
        "9:14: stages.3.convert: input type int8: scheme float16 has float32; schemes with int8: int8, mixed, recipe",
    ]),
    ("options that are a list", "{sparsity: 0.5}", "[0.5]", [
        "7:12: stages.1.prune: must be a mapping of options, found a list",
    ]),
    ("stages that are a mapping", STAGES, "stages: {train: {epochs: 2}}\n", [
        "5:9: stages: must be a list of stages; found a mapping",
    ]),
    ("no stage", STAGES, "stages: []\n", [
        "5:9: stages: must be a list of stages; found an empty list",
    ]),
    ("an empty entry", "- convert", "-", [
        "9:4: stages.3: each stage is one name with its options; found nothing",
    ]),
    ("two stages in one entry", "  - quantize: {epochs: 2}\n", "    quantize: {epochs: 2}\n", [
        "7:5: stages.1: each stage is one name with its options; found 2 keys (prune, quantize); begin each stage with its own '- '",
    ]),
    ('a share and a target', "sparsity: 0.5", 'sparsity: 0.5, target: {parameters: 5 k}', [
        '7:12: stages.1.prune: sparsity and target exclude each other',
    ]),
    ('a target without a number', "sparsity: 0.5", 'target: {}', [
        '7:21: stages.1.prune.target: needs exactly one of parameters, macs, flash, latency; found none',
    ]),
    ('two targets', "sparsity: 0.5", 'target: {macs: 5 k, flash: 3 KiB}', [
        '7:21: stages.1.prune.target: needs exactly one of parameters, macs, flash, latency; found macs and flash',
    ]),
    ('the latency of no device', "sparsity: 0.5", 'target: {latency: 5 ms}', [
        '7:21: stages.1.prune.target: `latency` and `device` go together: set both',
    ]),
    ('MACs by zeros', "sparsity: 0.5", 'target: {macs: 5 k}', [
        '7:12: stages.1.prune: zeros in a kernel do not reduce macs: a target in macs needs `granularity: channel`',
    ]),
    ('flash without a unit', "sparsity: 0.5", 'target: {flash: 64}, granularity: channel', [
        "7:29: stages.1.prune.target.flash: '64' has no unit; allowed: B, KiB, MiB, GiB, kB, KB, MB, GB",
    ]),
    ('a device that is none', "sparsity: 0.5", 'target: {latency: 5 ms, device: hosst}, granularity: channel', [
        "7:45: stages.1.prune.target.device: unknown device 'hosst'; did you mean 'host'? (the path of a .yaml file is also allowed)",
    ]),
    ('a device without a time', "sparsity: 0.5", 'target: {latency: 5 ms, device: rp2040-pico}, granularity: channel', [
        '7:45: stages.1.prune.target.device: its latency is unavailable: edgepipe neither runs nor models this core; run the model on the board and time Invoke() with the cycle counter',
    ]),
    ('more kept than there are', "sparsity: 0.5", 'granularity: "4:2"', [
        "7:26: stages.1.prune.granularity: found '4:2'; allowed: weight, channel, block MxN (outputs x inputs, as 1x4), N:M (as 2:4)",
    ]),
    ('a pattern and a share', "sparsity: 0.5", 'granularity: "2:4", sparsity: 0.75', [
        '7:12: stages.1.prune: 2:4 defines how many weights to remove (50%): omit sparsity and target',
    ]),
    ("a pattern and a layer's share", "sparsity: 0.5", 'granularity: "2:4", layers: {conv1: {sparsity: 0.1}}', [
        '7:12: stages.1.prune: 2:4 defines how many weights to remove (50%): omit sparsity and target',
    ]),
    ('erk of channels', "sparsity: 0.5", 'granularity: channel, distribution: erk', [
        '7:12: stages.1.prune: erk is for zeros in kernels; for channels: uniform, global, per_mac',
    ]),
    ('multiples of weights', "sparsity: 0.5", 'multiple_of: 8', [
        '7:12: stages.1.prune: multiple_of and `distribution: per_mac` are for `granularity: channel`',
    ]),
    ('a threshold without rounds', "sparsity: 0.5", 'max_drop: 1 point', [
        '7:12: stages.1.prune: max_drop needs `schedule: iterative`',
    ]),
    ('a drop in milliseconds', "sparsity: 0.5", 'max_drop: 1 ms, schedule: iterative', [
        "7:23: stages.1.prune.max_drop: 'ms' is not a unit of fraction; allowed: %, point, points",
    ]),
    ('a beginning at once', "sparsity: 0.5", 'initial_sparsity: 0.2, schedule: one_shot', [
        '7:12: stages.1.prune: initial_sparsity is for `schedule: polynomial` and cubic',
    ]),
    ('a beginning beyond the end', "sparsity: 0.5", 'initial_sparsity: 0.6', [
        '7:12: stages.1.prune: initial_sparsity (0.6) must be below sparsity (0.5)',
    ]),
    ("a layer's share above one", "sparsity: 0.5", 'layers: {conv1: {sparsity: 2}}', [
        '7:40: stages.1.prune.layers.conv1.sparsity: should be less than 1; found the number 2; 2 % is written 0.02',
    ]),
    ("one cluster", "quantize: {epochs: 2}", "cluster: {clusters: 1}", [
        "8:25: stages.2.cluster.clusters: should be greater than or equal to 2; found the number 1",
    ]),
    ("more clusters than int8 has values", "quantize: {epochs: 2}", "cluster: {layers: {conv1: {clusters: 257}}}", [
        "8:42: stages.2.cluster.layers.conv1.clusters: should be less than or equal to 256; found the number 257",
    ]),
    ("no cluster left beside zero", "quantize: {epochs: 2}", "cluster: {types: {Dense: {clusters: 2}}}", [
        "8:14: stages.2.cluster: clusters (2) must be at least 3: zero is one of them (preserve_sparsity: true)",
    ]),
    ("centroids from nowhere", "quantize: {epochs: 2}", "cluster: {init: kmeans}", [
        "8:21: stages.2.cluster.init: found 'kmeans'; allowed: density, linear, kmeans++, random; did you mean 'kmeans++'?",
    ]),
    ("clusters of a layer that is a number", "quantize: {epochs: 2}", "cluster: {layers: {conv1: 8}}", [
        "8:31: stages.2.cluster.layers.conv1: should be a mapping; found the number 8",
    ]),
    ("an unknown option of a layer", "quantize: {epochs: 2}", "cluster: {types: {Conv2D: {cluster: 8}}}", [
        "8:31: stages.2.cluster.types.Conv2D.clusters: is required but missing",
        "8:32: stages.2.cluster.types.Conv2D.cluster: unknown option; did you mean 'clusters'?",
    ]),
    ("a cluster's layer by a broken expression", "quantize: {epochs: 2}", 'cluster: {layers: {"conv[": null}}', [
        "8:24: stages.2.cluster.layers.conv[: 'conv[' is no regular expression: unterminated character set at position 4",
    ]),
    ("a layer by a broken expression", "quantize: {epochs: 2}", 'quantize: {keep_float_layers: {"conv[": null}}', [
        "8:36: stages.2.quantize.keep_float_layers.conv[: 'conv[' is no regular expression: unterminated character set at position 4",
    ]),
    ("a layer with options", "quantize: {epochs: 2}", "quantize: {keep_float_layers: {conv1: true}}", [
        "8:43: stages.2.quantize.keep_float_layers.conv1: should be null; found true",
    ]),
    ("prune after convert", "  - convert\n", "  - convert\n  - prune: {as: again}\n", [
        "10:5: stages.4.prune: 'prune' takes a float Keras model, but 'convert' before it gives a TFLite model; move 'prune' before 'convert'",
    ]),
    ("export of what is Keras 3 already", "  - prune:", "  - export\n  - prune:", [
        "7:5: stages.1.export: 'export' takes a tf_keras model, but 'train' before it gives a Keras 3 model; it is a Keras 3 model already: drop this stage",
    ]),
    ("export after quantize", "  - convert\n", "  - export\n  - convert\n", [
        "9:5: stages.3.export: 'export' takes a tf_keras model, but 'quantize' before it gives a fake-quant model; a fake-quant model can only be converted: "
        "drop this stage or put it before `quantize`",
    ]),
    ("mixed without a drop", "  - convert\n", "  - convert: {scheme: mixed}\n", [
        "9:14: stages.3.convert: scheme mixed needs max_drop, for example `max_drop: 0.5 point`",
    ]),
    ("a drop without mixed", "  - convert\n", "  - convert: {max_drop: 1 point}\n", [
        "9:14: stages.3.convert: max_drop needs `scheme: mixed`",
    ]),
    ("a drop of 500 %", "  - convert\n", "  - convert: {scheme: mixed, max_drop: 5}\n", [
        "9:40: stages.3.convert.max_drop: 5 is 500.00 %; write '5 %' or a fraction of one",
    ]),
    ("a float output for an integer-only device", "  - convert\n",
     "  - convert: {output: float32, device: nucleo-l4r5zi}\n", [
        "9:23: stages.3.convert.output: float32 at the output: nucleo-l4r5zi is for integers only",
    ]),
    ("recipe without a file", "  - convert\n", "  - convert: {scheme: recipe}\n", [
        "9:14: stages.3.convert: scheme recipe needs a recipe, the path of a JSON file",
    ]),
    ("a file without recipe", "  - convert\n", "  - convert: {recipe: r.json}\n", [
        "9:14: stages.3.convert: a recipe needs `scheme: recipe`",
    ]),
    ("a recipe that is not there", "  - convert\n", "  - convert: {scheme: recipe, recipe: no.json}\n", [
        "9:39: stages.3.convert.recipe: no.json: no such file",
    ]),
    ("calibration of no activations", "  - convert\n", "  - convert: {scheme: float16, calibration: mse}\n", [
        "9:14: stages.3.convert: calibration mse: scheme float16 quantizes no activations",
    ]),
    ("percentile of another method", "  - convert\n", "  - convert: {percentile: 99}\n", [
        "9:14: stages.3.convert: percentile needs `calibration: percentile`",
    ]),
    ("float layers on an integer-only device", "  - convert\n",
     "  - convert: {device: nucleo-l4r5zi, keep_float_types: {SOFTMAX: null}, keep_float_layers: {out: null}}\n", [
        "9:56: stages.3.convert.keep_float_types: nothing can stay in float: nucleo-l4r5zi is for integers only",
        "9:92: stages.3.convert.keep_float_layers: nothing can stay in float: nucleo-l4r5zi is for integers only",
        "11:23: stages.4.validate.devices.1: nucleo-l4r5zi is for integers only, and 'convert' keeps layers in float "
        "(`keep_float_types`, `keep_float_layers`); quantize them, or remove this device",
    ]),
    ("float layers and an integer-only device behind", "  - convert\n", "  - convert: {keep_float_types: {SOFTMAX: null}}\n", [
        "11:23: stages.4.validate.devices.1: nucleo-l4r5zi is for integers only, and 'convert' keeps layers in float "
        "(`keep_float_types`, `keep_float_layers`); quantize them, or remove this device",
    ]),
    ("float layers of a mix", "  - convert\n",
     "  - convert: {scheme: mixed, max_drop: 1 point, keep_float_types: {SOFTMAX: null}}\n", [
        "9:14: stages.3.convert: keep_float_types and keep_float_layers: scheme mixed chooses the types itself",
    ]),
    ("float layers without quantization", "  - convert\n", "  - convert: {scheme: float32, keep_float_layers: {out: null}}\n", [
        "9:14: stages.3.convert: keep_float_types and keep_float_layers: scheme float32 quantizes nothing",
    ]),
    ("former names of convert", "  - convert\n", "  - convert: {types: {SOFTMAX: null}, layers: {out: null}}\n", [
        "9:15: stages.3.convert.types: unknown option; did you mean 'keep_float_types'?",
        "9:39: stages.3.convert.layers: unknown option; did you mean 'keep_float_layers'?",
    ]),
    ("former names of quantize", "quantize: {epochs: 2}", "quantize: {types: {Dense: null}, layers: {conv1: null}}", [
        "8:16: stages.2.quantize.types: unknown option; did you mean 'keep_float_types'?",
        "8:38: stages.2.quantize.layers: unknown option; did you mean 'keep_float_layers'?",
    ]),
    ("a former name with another mistake", "quantize: {epochs: 2}", "quantize: {types: {Dense: null}, epoch: 2}", [
        "8:16: stages.2.quantize.types: unknown option; did you mean 'keep_float_types'?",
        "8:38: stages.2.quantize.epoch: unknown option; did you mean 'epochs'?",
    ]),
    ("the same device twice", "[host, nucleo-l4r5zi]", "[host, host]", [
        "11:23: stages.4.validate.devices.1: 'host' is listed twice",
    ]),
    ("equalized without integers", "  - convert\n", "  - convert: {scheme: float16, equalize: samples}\n", [
        "9:14: stages.3.convert: equalize is for integer weights: scheme float16 rounds none to 8 bits",
    ]),
    ("unknown device to convert for", "  - convert\n", "  - convert: {device: nucleo-l4r5z}\n", [
        "9:23: stages.3.convert.device: unknown device 'nucleo-l4r5z'; did you mean 'nucleo-l4r5zi'? "
        "(the path of a .yaml file is also allowed)",
    ]),
    ("two converts", "  - convert\n", "  - convert\n  - convert: {as: again}\n", [
        "10:5: stages.4.convert: 'convert' has quantized the model; drop one of them",
    ]),
    ("validate before convert", "  - convert\n  - validate:\n", "  - validate:\n", [
        "9:5: stages.3.validate: 'validate' takes a TFLite model or a compiled model, but 'quantize' before it gives a fake-quant model; put `convert` before it",
    ]),
    ("prune after quantize", "  - convert\n", "  - prune: {as: again}\n  - convert\n", [
        "9:5: stages.3.prune: 'prune' takes a float Keras model, but 'quantize' before it gives a fake-quant model; a fake-quant model can only be converted: "
        "drop this stage or put it before `quantize`",
    ]),
    ("train a tflite", MODEL, "model.tflite", [
        "6:5: stages.0.train: 'train' takes a float Keras model, but 'model' before it gives a TFLite model; name such a model in `model:`, or drop 'train'",
    ]),
    ("second stage of a name", "  - convert\n", "  - train\n  - convert\n", [
        "9:5: stages.3.train: 'train' takes a float Keras model, but 'quantize' before it gives a fake-quant model; a fake-quant model can only be converted: "
        "drop this stage or put it before `quantize`",
        "9:5: stages.3.train: a second stage named 'train'; give it a name of its own: `train: {as: train2, ..}`",
    ]),
    ("the name of the source", "train: {epochs: 2}", "train: {as: model}", [
        "6:13: stages.0.train.as: a second stage named 'model'; give it a name of its own: `train: {as: model2, ..}`",
    ]),
    ("a name that is a path", "train: {epochs: 2}", "train: {as: a/b}", [
        "6:17: stages.0.train.as: must be a name of letters, digits, '-', '_' and '.'; found the text 'a/b'",
    ]),
    ("no data", "data: edgepipe.data:digits\n", "", [
        "5:5: stages.0.train: 'train' needs `data:` at the top of the file",
    ]),
    ("no task", TASK + "\n", "", [
        "5:5: stages.0.train: 'train' needs `task:` at the top of the file",
    ]),
    ("unit of another dimension", BUDGET, "{accuracy: 90 KiB}", [
        "12:26: stages.4.validate.budget.accuracy: 'KiB' is not a unit of fraction; allowed: %, point, points",
    ]),
    ("no unit", BUDGET, "{host: {latency: 3}}", [
        "12:32: stages.4.validate.budget.host.latency: '3' has no unit; allowed: s, ms, us, µs, ns, min",
    ]),
    ("a percentage without its sign", BUDGET, "{accuracy: 90}", [
        "12:26: stages.4.validate.budget.accuracy: 90 is 9000.00 %; write '90 %' or a fraction of one",
    ]),
    ("negative limit", BUDGET, "{size: -3 KiB}", [
        "12:22: stages.4.validate.budget.size: -3 KiB is negative",
    ]),
    ("too large", BUDGET, "{size: 1e308 GiB}", [
        "12:22: stages.4.validate.budget.size: '1e308 GiB' is too large",
    ]),
    ("neither bound", BUDGET, "{accuracy: {optional: true}}", [
        "12:26: stages.4.validate.budget.accuracy: needs exactly one of max and min, found neither",
    ]),
    ("both bounds", BUDGET, "{accuracy: {min: 90 %, max: 95 %}}", [
        "12:26: stages.4.validate.budget.accuracy: needs exactly one of max and min, found max and min",
    ]),
    ("unknown metric", BUDGET, "{acuracy: 90 %}", [
        "12:16: stages.4.validate.budget.acuracy: neither a metric of this task nor one of `devices`; did you mean 'accuracy'?",
    ]),
    ("metric of another task", BUDGET, "{rmse: 3}", [
        "12:16: stages.4.validate.budget.rmse: neither a metric of this task nor one of `devices`; allowed: " + METRICS,
    ]),
    ("metric that belongs to a device", BUDGET, "{ram: 64 KiB}", [
        "12:16: stages.4.validate.budget.ram: 'ram' belongs under a device of `devices`, for example `host: {ram: ..}`",
    ]),
    ("device not in devices", BUDGET, "{raspberry-pi-4: {ram: 64 KiB}}", [
        "12:16: stages.4.validate.budget.raspberry-pi-4: neither a metric of this task nor one of `devices`; allowed: " + METRICS,
    ]),
    ("unknown metric of a device", BUDGET, "{host: {latancy: 3 ms}}", [
        "12:23: stages.4.validate.budget.host.latancy: not a device metric; did you mean 'latency'?",
    ]),
    ("a device's limit that is no mapping", BUDGET, "{host: 3 ms}", [
        "12:22: stages.4.validate.budget.host: must be a mapping of latency, ram, flash, npu_operators to a limit; found the text '3 ms'",
    ]),
    ("budget that is a list", BUDGET, "[accuracy]", [
        "12:15: stages.4.validate.budget: should be a mapping; found a list",
    ]),
    ("unknown evidence", BUDGET, "{host: {latency: {max: 3 ms, evidence: mesured}}}", [
        "12:54: stages.4.validate.budget.host.latency.evidence: found 'mesured'; did you mean 'measured'?",
    ]),
    ("optional yes", BUDGET, "{accuracy: {min: 90 %, optional: yes}}", [
        "12:48: stages.4.validate.budget.accuracy.optional: must be true or false, found the text 'yes'",
    ]),
    ("drop against a later stage", BUDGET, "{accuracy_drop: {max: 1 point, against: validate}}", [
        "12:55: stages.4.validate.budget.accuracy_drop.against: no earlier stage is named 'validate'; allowed: convert, model, prune, quantize, train",
    ]),
    ("drop against an unknown stage", BUDGET, "{accuracy_drop: {max: 1 point, against: trian}}", [
        "12:55: stages.4.validate.budget.accuracy_drop.against: no earlier stage is named 'trian'; did you mean 'train'?",
    ]),
    ("against without a drop", BUDGET, "{accuracy: {min: 90 %, against: train}}", [
        "12:38: stages.4.validate.budget.accuracy.against: only a drop is compared with an earlier stage",
    ]),
    ("against of the stage", "budget: {accuracy: 90 %}", "against: quantise", [
        "12:16: stages.4.validate.against: no earlier stage is named 'quantise'; allowed: model, train, prune, quantize, convert",
    ]),
    ("missing model", MODEL, "gone.keras", [
        "2:8: model: {base}/gone.keras: no such file or folder" + MODELS,
    ]),
    ("truncated model", MODEL, "truncated.keras", [
        "2:8: model: {base}/truncated.keras: not a readable .keras file (truncated or damaged?): File is not a zip file",
    ]),
    ("empty model", MODEL, "empty.keras", [
        "2:8: model: {base}/empty.keras: the file is empty" + MODELS,
    ]),
    ("a model that is none", MODEL, "broken.py", [
        "2:8: model: {base}/broken.py: not a model (its 12 bytes begin with b'def buil'; damaged, or another format)" + MODELS,
    ]),
    ("a folder without a model", MODEL, ".", [
        "2:8: model: {base}: a folder without saved_model.pb, so no SavedModel" + MODELS,
    ]),
    ("SavedModel", MODEL, "saved", [
        "2:8: model: a SavedModel is a program; write `model: {path: .., allow_code: true}` if you trust it",
    ]),
    ("unknown function", MODEL, "edgepipe.zoo:smal_cnn", [
        "2:8: model: module 'edgepipe.zoo' has no 'smal_cnn'",
    ]),
    ("unknown module", MODEL, "edgepip.zoo:small_cnn", [
        "2:8: model: no module 'edgepip.zoo' beside the pipeline ({base}) or on Python's path",
    ]),
    ("module that is not Python", MODEL, "broken:build", [
        "2:8: model: {base}/broken.py:1:11: not valid Python: invalid syntax",
    ]),
    ("path and function", MODEL, "{path: a.keras, function: edgepipe.zoo:small_cnn}", [
        "2:8: model: needs exactly one of path and function",
    ]),
    ("model that is a list", MODEL, "[a]", [
        "2:8: model: must be a file, module:function or a mapping; found a list",
    ]),
    ("data without a source", DATA, "{npy: a.npy}", [
        "3:8: data.npy: unknown source; did you mean 'npz'?",
    ]),
    ("data of a missing file", DATA, "{npz: gone.npz}", [
        "3:13: data.npz: no such file: {base}/gone.npz",
    ]),
    ("data that is a word", DATA, "digits", [
        "3:7: data: found the text 'digits'; write module:function (for example edgepipe.data:digits) or a mapping with one of: function, npz, images, fashion_mnist, idx, csv, parquet, audio, spoken_digits",
    ]),
    ("unknown task", TASK, "task: clasification", [
        "4:7: task.kind: found 'clasification'; allowed: classification, regression, reconstruction, custom; did you mean 'classification'?",
    ]),
    ("unknown metric of the task", TASK, "task: {kind: classification, metrics: [acuracy]}", [
        "4:40: task.metrics.0: no metric 'acuracy' for classification with `labels: one`; did you mean 'accuracy'?",
    ]),
    ("unknown loss", TASK, "task: {kind: regression, loss: msee}", [
        "4:32: task.loss: 'msee' is neither a loss nor module:function; did you mean 'mse'?",
    ]),
    ("custom task of nothing", TASK, "task: custom", [
        "4:7: task: a custom task needs `loss` and `custom_metrics`, or `function`",
    ]),
    ("missing function of the task", TASK, "task: {kind: classification, decode: 'edgepipe.zoo:decode'}", [
        "4:38: task.decode: module 'edgepipe.zoo' has no 'decode'",
    ]),
    ("seed -1", TASK, TASK + "\nseed: -1", [
        "5:7: seed: must be an integer from 0 to 2147483647; found the number -1",
    ]),
    ("seed 1.5", TASK, TASK + "\nseed: 1.5", [
        "5:7: seed: must be an integer from 0 to 2147483647; found the number 1.5",
    ]),
    ("seed true", TASK, TASK + "\nseed: true", [
        "5:7: seed: must be an integer from 0 to 2147483647; found true",
    ]),
    ("seed of too many digits", TASK, TASK + "\nseed: " + "9" * 5000, [
        "5:7: seed: '9999999999999999999999999999999999999999' cannot be read as an integer",
    ]),
    ("name that is a path", "name: p", "name: ../p", [
        "1:7: name: must be a name of letters, digits, '-', '_' and '.'; found the text '../p'",
    ]),
    ("description that is a number", TASK, TASK + "\ndescription: 3", [
        "5:14: description: must be a text; found the number 3",
    ]),
    ("key that is a number", TASK, TASK + "\n3: x", [
        "5:1: 3: the key must be a text, found '3'",
    ]),
    ("key that is a list", TASK, TASK + "\n? [a]\n: x", [
        "5:3: ?: the key must be a text, found a list or a mapping",
    ]),
    ("tab", "  - convert", "\t- convert", [
        "9:1: not valid YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
    ]),
    ("indentation", "data: ", "  data: ", [
        "3:7: not valid YAML: mapping values are not allowed here",
    ]),
    ("unclosed quote", "name: p", "name: 'p", [
        "1:7: not valid YAML: while scanning a quoted scalar, found unexpected end of stream",
    ]),
    ("undefined alias", "name: p", "name: *p", [
        "1:7: not valid YAML: found undefined alias 'p'",
    ]),
    ("alias of itself", BUDGET, "&b {accuracy: *b}", [
        "12:15: stages.4.validate.budget.accuracy: an alias that contains itself",
        "12:15: stages.4.validate.budget.accuracy: must be a quantity, found nothing",
    ]),
    ("alias bomb", GOOD, BOMB, [
        "1:1: a0: unknown option" + TOP,
        "1:1: model: is required but missing",
        "1:1: name: is required but missing",
        "1:1: stages: is required but missing",
        "1:5: a4.1.5.2.3: more than 20000 values (aliases count each time they are used)",
        "2:1: a1: unknown option" + TOP,
        "3:1: a2: unknown option" + TOP,
        "4:1: a3: unknown option" + TOP,
        "5:1: a4: unknown option" + TOP,
        "6:1: a5: unknown option" + TOP,
        "7:1: a6: unknown option" + TOP,
        "8:1: a7: unknown option" + TOP,
        "9:1: a8: unknown option" + TOP,
    ]),
    ("nested deep", GOOD, "a: " + "[" * 60 + "]" * 60 + "\n", [
        "1:1: a: unknown option" + TOP,
        "1:1: model: is required but missing",
        "1:1: name: is required but missing",
        "1:1: stages: is required but missing",
        "1:54: a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0: values nested more than 50 deep",
    ]),
    ("nested deeper", GOOD, "a: " + "[" * 3000 + "]" * 3000 + "\n", [
        "1:204: values nested more than 50 deep",
    ]),
    ("tag", "name: p", "name: !!python/name:os.system p", [
        "1:7: name: must be a name of letters, digits, '-', '_' and '.'; found nothing",
        "1:7: name: the tag tag:yaml.org,2002:python/name:os.system is not allowed; write a plain value",
    ]),
    ("half a character", "name: p", 'name: "\\ud800"', [
        "1:7: name: '\\ud800' cannot be read as a text",
        "1:7: name: must be a name of letters, digits, '-', '_' and '.'; found nothing",
    ]),
    ("no such character", "name: p", 'name: "\\UFFFFFFFF"', [
        "1:1: not valid YAML: a number or an escape in it is out of range",
    ]),
    ("null character", "name: p", "name: p\x00", [
        "1:8: not valid YAML: the character U+0000 is not allowed in a file",
    ]),
    ("two documents", GOOD, GOOD + "---\nname: q\n", [
        "13:1: not valid YAML: expected a single document in the stream, but found another document",
    ]),
    ("empty file", GOOD, "", [
        "1:1: the file is empty",
    ]),
    ("only a comment", GOOD, "# later\n", [
        "1:1: the file is empty",
    ]),
    ("a list", GOOD, "- train\n", [
        "1:1:" + NOT_ONE + "a list",
    ]),
    ("a text", GOOD, "train\n", [
        "1:1:" + NOT_ONE + "the text 'train'",
    ]),
    ("not UTF-8", "name: p", "name: p\udcff", [
        "1:8: not UTF-8 text: found the byte 0xff",
    ]),
    ("many at once", GOOD, "nam: p\nmodel: gone.keras\ndata: {npz: gone.npz}\ntask: clasification\nseed: -1\nstages:\n  - train: {epochs: 0}\n  - convert: {scheme: int4}\n  - prune: {sparsity: 75}\n", [
        "1:1: nam: unknown option; did you mean 'name'?",
        "1:1: name: is required but missing",
        "2:8: model: {base}/gone.keras: no such file or folder" + MODELS,
        "3:13: data.npz: no such file: {base}/gone.npz",
        "4:7: task.kind: found 'clasification'; allowed: classification, regression, reconstruction, custom; did you mean 'classification'?",
        "5:7: seed: must be an integer from 0 to 2147483647; found the number -1",
        "7:21: stages.0.train.epochs: should be greater than or equal to 1; found the number 0",
        "8:23: stages.1.convert.scheme: found 'int4'; allowed: int8, int16x8, mixed, dynamic, weight_only_int8, weight_only_int4, float16, float32, recipe; did you mean 'int8'?",
        "9:5: stages.2.prune: 'prune' takes a float Keras model, but 'convert' before it gives a TFLite model; move 'prune' before 'convert'",
        "9:23: stages.2.prune.sparsity: should be less than 1; found the number 75; 75 % is written 0.75",
    ]),
]

GOOD_ONES = {  # what may stand there instead
    "stages without options": ("- train: {epochs: 2}", "- train"),
    "options of nothing": ("- train: {epochs: 2}", "- train:"),
    "a second stage with a name": ("  - prune", "  - train: {as: longer, epochs: 3}\n  - prune"),
    "a drop against a named stage": (
        "{accuracy: 90 %}", "{accuracy_drop: {max: 1 point, against: prune}, host: {latency: 1 ms, ram: {max: 1 MiB, optional: true}}}"
    ),
    "a byte order mark": ("name: p", "\ufeffname: p"),
    "an alias": ("{epochs: 2}\n  - convert", "{learning_rate: &rate 1e-4}\n  - convert: &c {scheme: int8}"),
}

NO_OPTIONS = "which has no options of its own; set it as a whole"
SETTINGS: list[tuple[str, list[str]]] = [  # of --set, and the lines on stderr after `--set SETTING: `
    ("sed=3", ["unknown option 'sed'; did you mean 'seed'?"]),
    ("seed=-1", ["seed: must be an integer from 0 to 2147483647; found the number -1"]),
    ("seed=true", ["seed: must be an integer from 0 to 2147483647; found true"]),
    ("seed=", ["no value after the '='; write null for nothing"]),
    ("seed= ", ["no value after the '='; write null for nothing"]),
    ("stages.prune.sparsity=75", ["stages.1.prune.sparsity: should be less than 1; found the number 75; 75 % is written 0.75"]),
    ("stages.prune.sparsty=0.8", ["stages.1.prune.sparsty: unknown option; did you mean 'sparsity'?"]),
    ("stages.prun.sparsity=0.8", ["no stage of the file is named 'prun'; did you mean 'prune'?"]),
    ("stages.1.sparsity=0.8", ["no stage of the file is named '1'; allowed: again, convert, prune, quantize, validate"]),
    ("stages.None.epochs=1", ["no stage of the file is named 'None'; allowed: again, convert, prune, quantize, validate"]),
    ("stages.convert=int8", ["names no option; write --set stages.convert.OPTION=VALUE"]),
    ("stages=3", ["names no option; write --set stages.NAME.OPTION=VALUE"]),
    ("stages.convert.scheme=int4", ["stages.3.convert.scheme: found 'int4'; allowed: int8, int16x8, mixed, dynamic, weight_only_int8, weight_only_int4, float16, float32, recipe; did you mean 'int8'?"]),
    ("stages.convert.scheme=[", ["not valid YAML: expected the node content, but found '<stream end>'"]),
    ("stages.again.epochs=0", ["stages.0.train.epochs: should be greater than or equal to 1; found the number 0"]),
    ("stages.again.epochs.x=3", [f"stages.0.train.epochs.x: `stages.0.train.epochs` is the number 2, {NO_OPTIONS}"]),
    ("stages.validate.devices.0=host", [f"stages.4.validate.devices.0: `stages.4.validate.devices` is a list, {NO_OPTIONS}"]),
    ("stages.validate.devices=[hots]", ["stages.4.validate.devices.0: unknown device 'hots'; did you mean 'host'? (the path of a .yaml file is also allowed)"]),
    ("stages.validate.budget.host.latency=3", ["stages.4.validate.budget.host.latency: '3' has no unit; allowed: s, ms, us, µs, ns, min"]),
    ("stages.validate.budget.accuracy_drop.against=later", [
        "stages.4.validate.budget.accuracy_drop: needs exactly one of max and min, found neither",
        "stages.4.validate.budget.accuracy_drop.against: no earlier stage is named 'later'; allowed: again, convert, model, prune, quantize",
    ]),
    ("model.path=a.keras", [f"model.path: `model` is the text 'edgepipe.zoo:small_cnn', {NO_OPTIONS}"]),
    ("name.x.y=3", [f"name.x.y: `name` is the text 'p', {NO_OPTIONS}"]),
    ("task=clasification", ["task.kind: found 'clasification'; allowed: classification, regression, reconstruction, custom; did you mean 'classification'?"]),
]
