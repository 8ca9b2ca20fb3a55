"""What users override in a trainer: mixed in before one of ours."""

from trl_plus.step.exact_step import row_weights


def penalty(model):
    """A term that is the same for every micro-batch."""
    return 0.01 * sum((p**2).sum() for name, p in model.named_parameters() if "q_proj" in name)


def size_of_logits(model, inputs):
    """(B,): one value per row, or per pair from its chosen side."""
    rows = len(row_weights(inputs))
    ids, mask = inputs["input_ids"][:rows], inputs["attention_mask"][:rows]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    return (logits**2).mean(-1).mul(mask).sum(-1) / 10


class Classic:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class PassesOn:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class WantsOutputs:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        assert outputs.logits.dim() == 3
        return (loss, outputs) if return_outputs else loss


class Twice:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return (first + super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)) / 2


class AddsToTheMean:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs) + penalty(model)


class AddsToTheExact:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) + penalty(model)


class AddsExactly:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + self.exact_mean(size_of_logits(model, inputs), inputs, num_items_in_batch)


class OwnLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return size_of_logits(model, inputs).mean()


class OwnInnerLoss:
    def _compute_loss(self, model, inputs, return_outputs):
        return size_of_logits(model, inputs).mean()


class OwnOuterLoss:
    """As TRL's `compute_loss`, with a term."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._compute_loss(model, inputs, return_outputs) + penalty(model)


class AddsInside:
    def _compute_loss(self, model, inputs, return_outputs):
        return super()._compute_loss(model, inputs, return_outputs) + penalty(model)


class NoCount:
    def get_batch_samples(self, *args):
        return super().get_batch_samples(*args)[0], None


class OwnCount:
    def get_batch_samples(self, *args):
        batches, _ = super().get_batch_samples(*args)
        return batches, sum(batch["completion_mask"].sum() for batch in batches)


class OwnDraw:
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None


class OwnStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class OwnStepOnMeans:
    def training_step(self, model, inputs, *args):
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class WrapsTheStep:
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)


class AlreadyScaled:
    """`loss_is_scaled_for_ga` of transformers: its own loss is not divided any more."""

    loss_is_scaled_for_ga = True
