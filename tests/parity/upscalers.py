"""The networks that enlarge as PyTorch modules, by the papers and the names in their files."""

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class RDB(nn.Module):
    def __init__(self, width: int, growth: int):
        super().__init__()
        for i in range(5):
            setattr(self, f"conv{i + 1}", conv(width + i * growth, width if i == 4 else growth))

    def forward(self, x):
        seen = [x]
        for i in range(1, 5):
            seen.append(F.leaky_relu(getattr(self, f"conv{i}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class RRDBNet(nn.Module):
    """Of BasicSR; scale 2 and 1 read squares of pixels as one."""

    def __init__(self, scale: int = 4, width: int = 8, growth: int = 4, blocks: int = 2, doublings: int = 2):
        super().__init__()
        self.unshuffle = 2**doublings // scale
        self.conv_first = conv(3 * self.unshuffle**2, width)
        self.body = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            block.rdb1, block.rdb2, block.rdb3 = (RDB(width, growth) for _ in range(3))
            self.body.append(block)
        self.conv_body = conv(width, width)
        self.ups = [f"conv_up{i + 1}" for i in range(doublings)]
        for name in self.ups:
            setattr(self, name, conv(width, width))
        self.conv_hr, self.conv_last = conv(width, width), conv(width, 3)

    def forward(self, x):
        x = self.conv_first(F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x)
        h = x
        for block in self.body:
            h = h + 0.2 * block.rdb3(block.rdb2(block.rdb1(h)))
        x = x + self.conv_body(h)
        for name in self.ups:
            x = F.leaky_relu(getattr(self, name)(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


def as_first_released(state: dict) -> dict:
    """The names of ESRGAN's first release and of BSRGAN."""
    table = {"conv_body": "trunk_conv", "body.": "RRDB_trunk.", "rdb": "RDB", "conv_up": "upconv", "conv_hr": "HRconv"}
    return {_renamed(name, table): tensor for name, tensor in state.items()}


def _renamed(name: str, table: dict) -> str:
    for now, then in table.items():
        name = name.replace(now, then)
    return name


def as_old_architecture(state: dict) -> dict:
    """ESRGAN as one nn.Sequential, the form of most models that people have made."""
    blocks = len({name.split(".")[1] for name in state if name.startswith("body.")})
    ups = len([name for name in state if name.startswith("conv_up") and name.endswith("weight")])
    table = {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{blocks}",
        "body.": "model.1.sub.",
        "rdb": "RDB",
        "conv_hr": f"model.{2 + 3 * ups}",
        "conv_last": f"model.{4 + 3 * ups}",
    } | {f"conv_up{i + 1}": f"model.{3 + 3 * i}" for i in range(ups)}
    found = {}
    for name, tensor in state.items():
        old = _renamed(name, table)
        if "RDB" in old:
            module, leaf = old.rsplit(".", 1)
            old = f"{module}.0.{leaf}"
        found[old] = tensor
    return found


class Compact(nn.Module):
    def __init__(self, scale: int = 4, width: int = 8, layers: int = 3):
        super().__init__()
        self.scale = scale
        self.body = nn.ModuleList([conv(3, width), nn.PReLU(width)])
        for _ in range(layers):
            self.body += [conv(width, width), nn.PReLU(width)]
        self.body.append(conv(width, 3 * scale**2))

    def forward(self, x):
        h = x
        for layer in self.body:
            h = layer(h)
        return F.pixel_shuffle(h, self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


class SwinAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        row, column = (each.flatten() for each in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
        down, right = (each[:, None] - each[None] + window - 1 for each in (row, column))
        self.register_buffer("relative_position_index", down * (2 * window - 1) + right)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, mask):
        count, pixels, width = x.shape
        q, k, v = self.qkv(x).view(count, pixels, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + bias
        if mask is not None:
            scores = scores + mask.repeat(count // len(mask), 1, 1)[:, None]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int, hidden: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SwinAttention(width, heads, window)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        if shift:  # a buffer of the files, for the size of training; it is computed anew for others
            self.register_buffer("attn_mask", torch.zeros(1, window**2, window**2))

    def cut(self, x):
        batch, height, width, channels = x.shape
        size = self.window
        x = x.view(batch, height // size, size, width // size, size, channels)
        return x.transpose(2, 3).reshape(-1, size * size, channels)

    def join(self, cut, shape):
        batch, height, width, channels = shape
        size = self.window
        x = cut.view(batch, height // size, width // size, size, size, channels).transpose(2, 3)
        return x.reshape(shape)

    def apart(self, height, width):
        regions, number = torch.zeros(1, height, width, 1), 0
        for rows in (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)):
            for columns in (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None)):
                regions[:, rows, columns] = number
                number += 1
        own = self.cut(regions)[..., 0]
        return torch.where(own[:, None] == own[:, :, None], 0.0, -100.0)

    def forward(self, x):
        h, mask = self.norm1(x), None
        if self.shift:
            h, mask = torch.roll(h, (-self.shift, -self.shift), (1, 2)), self.apart(*x.shape[1:3])
        h = self.join(self.attn(self.cut(h), mask), x.shape)
        x = x + (torch.roll(h, (self.shift, self.shift), (1, 2)) if self.shift else h)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


def body_end(width: int, convolutions: int) -> nn.Module:
    if convolutions == 1:
        return conv(width, width)
    quarter = width // 4
    return nn.Sequential(
        conv(width, quarter), nn.LeakyReLU(0.2), conv(quarter, quarter, 1), nn.LeakyReLU(0.2), conv(quarter, width)
    )


class SwinIR(nn.Module):
    def __init__(
        self,
        upsampler: str,
        scale: int = 4,
        convolutions: int = 1,
        width: int = 12,
        heads: int = 2,
        window: int = 4,
        layers: int = 2,
        depth: int = 2,
        between: int = 8,
    ):
        super().__init__()
        self.upsampler, self.window = upsampler, window
        self.conv_first = conv(3, width)
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.residual_group = nn.Module()
            layer.residual_group.blocks = nn.ModuleList(
                SwinBlock(width, heads, window, i % 2 * (window // 2), 2 * width) for i in range(depth)
            )
            layer.conv = body_end(width, convolutions)
            self.layers.append(layer)
        self.norm, self.conv_after_body = nn.LayerNorm(width), body_end(width, convolutions)
        if upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(width, 3 * scale**2), nn.PixelShuffle(scale))
            return
        self.conv_before_upsample = nn.Sequential(conv(width, between), nn.LeakyReLU())
        if upsampler == "pixelshuffle":
            factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
            pairs = [(conv(between, between * factor**2), nn.PixelShuffle(factor)) for factor in factors]
            self.upsample = nn.Sequential(*[layer for pair in pairs for layer in pair])
        else:
            self.conv_up1, self.conv_up2, self.conv_hr = (conv(between, between) for _ in range(3))
        self.conv_last = conv(between, 3)

    def forward(self, x):
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.window, 0, -height % self.window), "reflect")
        mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
        x = self.conv_first(x - mean)
        h = self.patch_embed.norm(x.permute(0, 2, 3, 1))
        for layer in self.layers:
            inner = h
            for block in layer.residual_group.blocks:
                inner = block(inner)
            h = h + layer.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.conv_after_body(self.norm(h).permute(0, 3, 1, 2))
        if self.upsampler == "pixelshuffledirect":
            x = self.upsample(x)
        else:
            x = self.conv_before_upsample(x)
            if self.upsampler == "pixelshuffle":
                x = self.upsample(x)
            else:
                for up in (self.conv_up1, self.conv_up2):
                    x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
                x = F.leaky_relu(self.conv_hr(x), 0.2)
            x = self.conv_last(x)
        return x + mean
