"""What a `pulumi preview` means for the people who use the system: read from its event log, told as a merge request's comment.

``log`` reads the events, ``names`` gives resources the names people use, ``changes`` says what changes, ``data_loss`` and
``interruptions`` what that costs, ``policies`` and ``failures`` what the policy pack and Pulumi objected to, ``report`` puts
it together as plain data, ``comment`` writes that as Markdown.

Whoever reads a merge request reads the comment. So a value is shown only where ``labels`` allows it, and ``redaction`` cleans
what others said.
"""
