"""Muon for the matrices inside the blocks, AdamW for everything else, and an average of the weights."""
import torch


def orthogonalise(stack, steps=5):
    """Newton-Schulz iteration towards U V^T of each matrix in stack [n, rows, columns] (Jordan 2024, Muon).

    torch.optim.Muon does the same one matrix at a time and in bf16, which is slow without bf16 units.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are stepped together."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                self._step_shape(group, parameters, max(1.0, rows / columns) ** 0.5)

    def _step_shape(self, group, parameters, scale):
        updates = []
        for parameter in parameters:
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(buffer, group["momentum"]))
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)).unbind()):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)


def split_parameters(transformer, text_encoder):
    """Matrices of blocks and of the encoder's layers for Muon; embeddings, tables, norms and ends for AdamW."""
    inner = list(transformer.blocks.named_parameters()) + list(text_encoder.encoder.block.named_parameters())
    matrices = [p for name, p in inner if p.dim() == 2 and "relative_attention_bias" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for net in (transformer, text_encoder) for p in net.parameters() if id(p) not in chosen]
    return matrices, rest


class Average:
    """Exponential moving average of parameters; the decay warms up, so early noise is forgotten."""

    def __init__(self, modules, limit):
        self.limit = limit
        self.sources = [p for module in modules for p in module.parameters()]
        self.values = [p.detach().clone() for p in self.sources]

    @torch.no_grad()
    def update(self, step):
        decay = min(self.limit, 1 - (step + 1) ** -0.7)
        torch._foreach_lerp_(self.values, [p.detach() for p in self.sources], 1 - decay)

    @torch.no_grad()
    def swap(self):
        """Exchanges averaged and current weights: call before and after using the average."""
        for parameter, value in zip(self.sources, self.values):
            held = parameter.clone()
            parameter.copy_(value)
            value.copy_(held)
