"""What a Python user would pick instead of ``SecureDb``, each as a worker in a process of its own.

All of them write durably: one sync before a call returns. Where they are SQLite, that is WAL with
``synchronous=FULL``, and ``secure_delete=ON`` as in the store. What else can be set was tried both ways,
and each has what was fastest for it at 1 KiB; its module says what that is. The page cache stays as its
package ships it, which for SQLCipher is four times the store's: a cache larger than the data would hold it in
clear and show no cost of encryption at all. Keys are raw, so that no password is stretched.

Run by the name of the module: ``python -m benchmarks.peers.fernet``. Standard input has the commands.
"""
