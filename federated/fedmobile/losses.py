"""The losses of FedMobile-style learning, on logits.

    L = CE(labelled) + lambda_u consistency(unlabelled) + lambda_d distillation(all)

Each returns a sum over windows; the caller divides by the windows of the whole batch, so that a
batch in parts gives the gradient of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def labelled_loss(
    logits: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of cross-entropies: logits [n, classes], labels int64 [n].

    Args:
        prior: [classes], from `label_prior`; added to the logits here and nowhere else, so that a
            class is not pushed down only because this device has few labels of it.
    """
    from torch.nn import functional

    adjusted = logits if prior is None else logits + prior
    return functional.cross_entropy(adjusted, labels, reduction="sum")


def label_prior(labels: torch.Tensor, classes: int, strength: float) -> torch.Tensor:
    """Logarithm of how often each class comes among a device's labels (logit adjustment: Menon et
    al., ICLR 2021, eq. 10; device by device: Zhang et al., FedLC, ICML 2022).

    Args:
        labels: int64 [n] of the device's labelled windows; each class is counted once more.
        strength: 0, nothing, to 1, the whole logarithm.
    """
    counts = labels.bincount(minlength=classes).float() + 1
    return strength * (counts / counts.sum()).log()


def alignment(labels: torch.Tensor, teacher_logits: torch.Tensor, strength: float) -> torch.Tensor:
    """What to add to a teacher's logits so that its classes come as often as the labels say
    (distribution alignment: ReMixMatch, Berthelot et al., ICLR 2020, section 3.1).

    Args:
        labels: int64 [n] of the device's labelled windows; each class is counted once more.
        teacher_logits: [m, classes] of its unlabelled windows, m >= 1.
        strength: 0, nothing, to 1, the whole ratio of the two distributions.

    Returns:
        [classes]; zeros where there is no label, which says nothing of the classes.
    """
    classes = teacher_logits.shape[1]
    if not len(labels):
        return teacher_logits.new_zeros(classes)
    counts = labels.bincount(minlength=classes).to(teacher_logits.dtype) + 1
    wanted = counts / counts.sum()
    seen = teacher_logits.softmax(dim=1).mean(dim=0).clamp_min(1e-3)
    return strength * (wanted / seen).log()


def consistency_loss(
    teacher_logits: torch.Tensor, strong_logits: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the strong view against the teacher's label of the weak view, where the
    teacher is sure (FixMatch, Sohn et al., NeurIPS 2020, eq. 4).

    Args:
        teacher_logits, strong_logits: [n, classes]; no gradient enters the teacher.
        threshold: least probability of its best class.

    Returns:
        The sum over sure windows, and which windows these are, bool [n].
    """
    from torch.nn import functional

    best, labels = teacher_logits.detach().softmax(dim=1).max(dim=1)
    sure = best >= threshold
    each = functional.cross_entropy(strong_logits, labels, reduction="none")
    return (each * sure).sum(), sure


def distillation_loss(
    previous_logits: torch.Tensor, logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 KL(p_previous(T) || p(T)), summed over windows (Hinton et al., 2015; against forgetting:
    Learning without Forgetting, Li and Hoiem, ECCV 2016).

    Args:
        previous_logits, logits: [n, classes]; no gradient enters the previous model.
        temperature: T; T^2 keeps the size of the gradient.
    """
    from torch.nn import functional

    return temperature**2 * functional.kl_div(
        (logits / temperature).log_softmax(dim=1),
        (previous_logits.detach() / temperature).log_softmax(dim=1),
        reduction="sum",
        log_target=True,
    )
