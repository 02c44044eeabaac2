"""What would end a run of stages later on, said before it begins: its settings could not be changed any more by then."""

from __future__ import annotations

from torch import nn

from smallview.config import RunConfig, stage_settings
from smallview.data.sources import Source
from smallview.data.subsets import positions
from smallview.errors import UsageError
from smallview.networks.encoders import EncoderConfig, build_encoder, count_features, describe
from smallview.networks.online_target import Networks
from smallview.settle import check_encoder
from smallview.training.handover import Ended


def check_chain(config: RunConfig, source: Source, encoder: object, batch_given: bool) -> None:
    """Whether every stage can be built, goes on with the one before, and has pictures enough.

    Raises:
        UsageError, DataError: what the stage itself would say.
    """
    before: tuple[nn.Module, EncoderConfig, Networks] | None = None
    for k, stage in enumerate(config.stages):
        settings = stage_settings(config, k)
        try:
            settings.method.check_batch(settings.batch_size)
        except ValueError as error:
            raise UsageError(f"stage {k + 1}: {error}") from None
        if settings.subset is not None:
            subset = settings.subset
            known = subset.chosen_by is None
            count = len(positions(source, subset, config.seed)) if known else subset.count(len(source))
            if settings.batch_size > count and (batch_given or stage.batch_size is not None):
                raise UsageError(
                    f"stage {k + 1}: batch_size is {settings.batch_size:,} and its subset has {count:,} pictures; wanted at most that"
                )
        if isinstance(encoder, nn.Module):
            if settings.depth is not None or stage.encoder is not None:
                raise UsageError(
                    f"stage {k + 1} has a depth or an encoder and the encoder is a module of your own; wanted neither"
                )
            describe(encoder, in_channels=source.channels, size=settings.size)
            continue
        check_encoder(settings.encoder)
        if settings.encoder.startswith("custom:"):
            raise UsageError(
                f"the encoder is a module of your own ({settings.encoder[7:]}); pass it: pretrain(data, encoder=module)"
            )
        net, described = build_encoder(
            settings.encoder, in_channels=source.channels, size=config.size, stem=config.stem, depth=settings.depth
        )
        count_features(net, source.channels, settings.size)
        networks = Networks(net, described.features, config.method.heads, config.method.target)
        if before is not None:
            tensors = {f"networks.{name}": value for name, value in before[2].state_dict().items()}
            new, _ = Ended(before[0], before[1], tensors).into(networks, described, 0, lambda message: None)
            if settings.trains == "new" and not {name for name, _ in net.named_parameters()} & set(new):
                raise UsageError(
                    f"stage {k + 1}: trains is new and this stage adds nothing to the encoder; wanted a greater depth, or all"
                )
        before = net, described, networks
