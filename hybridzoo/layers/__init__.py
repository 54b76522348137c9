"""nn.Modules that at least two models share. A layer used by one model lives in that model's folder."""
