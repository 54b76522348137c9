"""`hybridzoo` with FSDP on CPU processes. accelerate shards models on accelerators only; here processes of the CPU pass
for such, so that the code of a sharded run is exercised without a GPU. Sharding itself is torch's, over gloo."""

from accelerate import state

_init = state.PartialState.__init__


def _as_accelerators(self: state.PartialState, *args: object, **kwargs: object) -> None:
    _init(self, *args, **kwargs)
    self.distributed_type = state.DistributedType.MULTI_GPU


state.PartialState.__init__ = _as_accelerators

if __name__ == "__main__":
    from hybridzoo.cli import main

    main()
