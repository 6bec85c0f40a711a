"""The same step in PyTorch, with the model of transformers; run by path, under another Python.

    PYTHON peer_torch.py FOLDER TASK DEVICE DTYPE COMPILE

It answers lines as `subprocesses.serve` does. Where the two could differ, the peer gets the
advantage: pixels are normalized and masks drawn before the clock starts, the optimizer is fused.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

EPSILON = 1e-6  # transformers uses 1e-5 in two norms and ignores its config there


def build(folder, task, device, dtype, compiled):
    """Return a function that runs one step and returns the loss as a tensor."""
    data = np.load(folder / "inputs.npz")
    kinds = {"finetune": transformers.VideoMAEForVideoClassification}
    kind = kinds.get(task, transformers.VideoMAEForPreTraining)
    model, info = kind.from_pretrained(
        folder / "model", attn_implementation="sdpa", output_loading_info=True
    )
    # Some releases (5.17) have biases on keys, which start at zero and do not change the softmax,
    # and do not know the older of the two names in the file for the other biases.
    spare = {"missing_keys": ("key.bias",), "unexpected_keys": ("q_bias", "v_bias")}
    for what, keys in info.items():
        wrong = [key for key in keys if not key.endswith(spare.get(what, ()))]
        if wrong:
            raise SystemExit(f"the weights do not fit, {what}: {wrong}")
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = EPSILON
    model = model.to(device).train()

    processor = json.loads((folder / "model" / "preprocessor_config.json").read_text())
    mean, std = np.float32(processor["image_mean"]), np.float32(processor["image_std"])
    pixels = (data["video"] / np.float32(255) - mean) / std
    pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 4, 2, 3))).to(device)
    cast = torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != "float32")

    if task == "encode":
        model = model.videomae.eval()

        def forward():
            with torch.inference_mode(), cast:
                return model(pixels).last_hidden_state.float().mean(1).square().mean()

        return torch.compile(forward) if compiled else forward

    if task == "pretrain":
        given = {"bool_masked_pos": torch.from_numpy(data["hidden"]).to(device)}
    else:
        given = {"labels": torch.from_numpy(data["label"]).long().to(device)}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    network = torch.compile(model) if compiled else model

    def step():
        with cast:
            loss = network(pixels, **given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def peak_memory(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # a process inherits ru_maxrss from its parent
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def count_cores():
    # A copy of host.count_cores, which this file cannot import: it runs under another Python.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(folder, task, device, dtype, mode):
    replies, sys.stdout = sys.stdout, sys.stderr

    def answer(**values):
        print(json.dumps(values), file=replies, flush=True)

    for line in map(str.strip, sys.stdin):
        if line == "start":
            torch.set_num_threads(count_cores())
            step = build(folder, task, device, dtype, mode == "compile")
            answer(torch=torch.__version__, transformers=transformers.__version__)
        elif line == "step":
            began = time.perf_counter()
            loss = step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            answer(seconds=seconds, loss=float(loss))
        else:
            answer(peak_memory_bytes=peak_memory(device))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
