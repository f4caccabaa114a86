"""Right numbers: every kernel against its reference, and bf16 autocast against float32."""

from dataclasses import replace

import torch

from gpu_sections.result import Result, Table
from gpu_sections.setting import Setting, loss_of
from mode_ssm.ops.verification import verify, worst

STEPS = 30  # of training on one batch, so that the labels matter to the loss
LOSS_BAR = 0.01  # bf16 against float32
COSINE_BAR = 0.99
SHIFTED_BAR = 0.10  # labels shifted by one must change the loss by more


def kernels(setting: Setting) -> Result:
    """Every output and gradient of every backend, in float32 and bf16."""
    frames = 20 if setting.rehearse else 300
    findings = list(verify(setting.device, [torch.float32, torch.bfloat16], frames=frames))
    rows = []
    for (op, backend, _, dtype), row in worst(findings).items():
        by_error = sorted(row.values(), key=lambda finding: -(finding.error or 0.0))
        furthest = next((finding for finding in by_error if finding.wrong), by_error[0])
        rows.append([op, backend, dtype, furthest.error, furthest.bar, furthest.quantity, furthest.case])
    wrong = [finding for finding in findings if finding.wrong]
    refusals = dict.fromkeys(f"{f.backend}, {f.dtype}, {f.op} ({f.case}): {f.refusal}" for f in findings if f.refusal)
    columns = ("op", "backend", "dtype", "largest error", "bar", "of", "case")
    return Result(
        tables=[Table("errors relative to the largest magnitude of each tensor", columns, rows, list(refusals))],
        faults=[
            f"{f.op} on {f.backend}, {f.dtype}, {f.case}: {f.quantity} is off by {f.error:.1e}, the bar is {f.bar:.0e}"
            for f in wrong
        ],
    )


def autocast(setting: Setting) -> Result:
    """Loss and gradients of the joint phase in bf16 and in float32, and the loss of labels shifted by one.

    The model is first trained on the batch, whose labels are of odd number: at random weights all are equally unlikely.
    """
    phase = setting.phase("joint")
    objective, batch = setting.objective("joint"), setting.batch_of(seed=0)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2 if setting.rehearse else 1e-3)
    objective.eval()
    losses = []
    for _ in range(STEPS):
        loss = loss_of(objective, batch, phase, bf16=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    found, gradients = {}, {}
    for name, bf16 in (("float32", False), ("bf16", True)):
        loss = loss_of(objective, batch, phase, bf16)
        gradients[name] = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, parameters)])
        found[name] = float(loss.detach())
    shifted = replace(batch, targets=batch.targets + 1)
    with torch.no_grad():
        found["shifted"] = float(loss_of(objective, shifted, phase, bf16=True))
    cosine = float(torch.nn.functional.cosine_similarity(gradients["float32"], gradients["bf16"], 0))
    difference = abs(found["bf16"] / found["float32"] - 1)
    change = abs(found["shifted"] / found["float32"] - 1)
    rows = [
        ["loss before training on the batch", losses[0], None],
        [f"loss after {STEPS} steps, float32", found["float32"], None],
        ["the same in bf16", found["bf16"], None],
        ["bf16 against float32, relative", difference, f"at most {LOSS_BAR}"],
        ["cosine of the two gradients", cosine, f"at least {COSINE_BAR}"],
        ["loss of labels shifted by one", found["shifted"], None],
        ["shifted against float32, relative", change, f"at least {SHIFTED_BAR}"],
    ]
    faults = []
    if not losses[-1] < losses[0]:
        faults.append(f"training on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g}")
    if not difference <= LOSS_BAR:
        faults.append(f"the bf16 loss is off by {difference:.2%}")
    if not cosine >= COSINE_BAR:
        faults.append(f"the bf16 gradient has a cosine of {cosine:.4f} with that of float32")
    if not change >= SHIFTED_BAR:
        faults.append(f"labels shifted by one change the loss by {change:.2%} only")
    return Result([Table("joint phase of t15_mode_ssm, random data", ("what", "value", "bar"), rows)], faults=faults)
