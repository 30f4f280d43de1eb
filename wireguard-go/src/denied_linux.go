// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package main

import "golang.org/x/sys/unix"

// What the filter of system calls denies. It is not a list of allowed calls, because a
// later Go's runtime may use others than today's. No Go runtime uses these once the
// process has begun; what needs a privilege that the process cannot get is left out.

// deniedFileCalls are those that Landlock denies too, in one of its versions, and with the
// same error.
var deniedFileCalls = []uint32{
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_TRUNCATE,
	unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT,
	unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
}

// deniedFileCallsOnAMD64 are open, rename, mkdir, rmdir, creat, link, unlink, symlink and
// mknod. arm64 only has the calls that replaced them.
var deniedFileCallsOnAMD64 = []uint32{2, 82, 83, 84, 85, 86, 87, 88, 133}

var deniedSystemCalls = []uint32{
	// Other programs, and namespaces: in a new user namespace many more calls are allowed.
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	// Other processes' memory and descriptors.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
	unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES,
	unix.SYS_KCMP,
	// Signals to them, except by the calls in onItself.
	unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL,
	// Their priorities.
	unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM,
	unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY,
	// Memory, semaphores and messages that they share by name.
	unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL, unix.SYS_SEMGET, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP,
	unix.SYS_SEMCTL, unix.SYS_MSGGET, unix.SYS_MSGSND, unix.SYS_MSGRCV, unix.SYS_MSGCTL,
	unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK,
	// Files' modes, owners, times and attributes, which Landlock does not protect.
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT,
	unix.SYS_UTIMENSAT, unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT,
	fileSetattr,
	// What tells which files there are, and what happens to them. Nor does it protect that.
	unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_READLINKAT, unix.SYS_CHDIR, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_TREE, openTreeAttr,
	unix.SYS_STATMOUNT, unix.SYS_LISTMOUNT, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_GETXATTRAT,
	unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_LISTXATTRAT, fileGetattr,
	unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK,
	// A Unix socket, from which sendto(2) and connect(2) reach other processes.
	unix.SYS_SOCKETPAIR,
	// Large parts of the kernel with a history of holes.
	unix.SYS_IO_URING_SETUP, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
}

// Newer than golang.org/x/sys. Since 2019, a call has the same number everywhere.
const openTreeAttr, fileGetattr, fileSetattr = 467, 468, 469

// deniedOnAMD64 are fork, vfork, chmod, stat, lstat, access, readlink, chown, lchown,
// utime, utimes, inotify_init and futimesat. arm64 only has the calls that replaced them.
var deniedOnAMD64 = []uint32{57, 58, 90, 4, 6, 21, 89, 92, 94, 132, 235, 253, 261}

// onItself lists calls that a process may only use on itself, which their first argument
// says: Go's runtime interrupts its threads by signals, and may raise its own limits.
func onItself(pid uint32) []struct{ call, self uint32 } {
	return []struct{ call, self uint32 }{{unix.SYS_KILL, pid}, {unix.SYS_TGKILL, pid}, {unix.SYS_PRLIMIT64, 0}}
}

// deniedOperations have the kernel send signals to the owner of a descriptor, who may be
// any process, and watch a directory.
var deniedOperations = []struct{ call, number uint32 }{
	{unix.SYS_FCNTL, unix.F_SETOWN}, {unix.SYS_FCNTL, unix.F_SETOWN_EX}, {unix.SYS_FCNTL, unix.F_SETSIG},
	{unix.SYS_FCNTL, unix.F_NOTIFY}, {unix.SYS_IOCTL, fioSetOwn}, {unix.SYS_IOCTL, siocSetPgrp},
}

const fioSetOwn, siocSetPgrp = 0x8901, 0x8902 // asm-generic/sockios.h
