"""What a hardened container promises, in 36 points, and a program that looks whether it keeps them.

    just security-probe                    the running service of this project
    just security-probe NAME               any container
    just security-probe --no-rebuild --keep-running    leaves out what takes long or interrupts

Three layers, each of which knows only those before it:

- *Collecting*: ``engine`` runs the ``docker`` command, ``container`` and ``image`` ask it for what
  it knows, ``files`` reads the image's files, ``inside`` is the program that runs in the container
  and tries what must not be possible, ``rebuild`` and ``restart`` do what takes an action. All of
  it ends up in ``facts``.
- *Judging*: ``image_points``, ``container_points`` and ``inside_points`` hold the points, which
  ``points`` lists; pure functions from facts to findings. A fact that is missing, or is not of its
  kind, proves nothing, and what is not proven fails.
- *Reporting*: ``report`` for the reviewer, ``summary`` for the terminal and for other programs.

The container is not trusted: what comes out of it is bounded, checked, and printed as plain text.
But whoever controls the interpreter inside can make points 27 to 35 up; the probe finds mistakes in
a configuration, not an intruder who lies about it.
"""
