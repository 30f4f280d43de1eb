// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The sandbox of a supervised process: denyFiles and denySystemCalls take away what only
// an intruder would use. WireGuard needs memory, threads, UDP, and the descriptors that
// the process has or receives. Both are called before the process learns a secret, and
// apply to all its threads for good:
//
//   - No other process of the same user can read its memory, and no core dump has it.
//   - It cannot open, change, find or watch a file, or run a program.
//   - It cannot signal or slow down another process, or share memory with it.
//   - It can make no socket but rtnetlink's; it gets its UDP sockets from the supervisor. Over
//     a Unix socket, the session bus would do outside the sandbox whatever is denied inside.
//
// Landlock denies what is new in later kernels, and what a list of system calls may lack.
// The list denies what Landlock does not cover, or not in the kernel at hand: Debian 12's
// Landlock lets a process truncate files and signal others.
//
// The process continues without a part that the kernel lacks, or that a container's
// filter of system calls refuses. Each such part is returned as an error that begins
// with its name.

// denyFiles makes Landlock deny everything it can. Open files stay usable.
//
// Call it before the process does anything else. A system call in all threads requires
// Go's runtime to stop them, and now and then that hangs forever if one is about to
// enter a system call that blocks (seen with Go 1.26, in one of 20,000 starts).
func denyFiles() (lacks []error) {
	_ = time.Local.String() // loads /etc/localtime, for the log's timestamps

	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		lacks = append(lacks, fmt.Errorf("PR_SET_DUMPABLE: %w", err))
	}
	// Landlock and seccomp need this, or privilege.
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		lacks = append(lacks, fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", errno))
	}
	if err := restrictByLandlock(); err != nil {
		lacks = append(lacks, fmt.Errorf("Landlock: %w", err))
	}
	return lacks
}

func restrictByLandlock() error {
	version, errno := landlock(unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errno
	}
	errata, errno := landlock(landlockCreateRulesetErrata)
	if errno != 0 { // older than the first errata
		errata = 0
	}
	ruleset := allOfLandlock(version, errata)
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&ruleset)), unsafe.Sizeof(ruleset), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// From linux/landlock.h and the kernel's security/landlock/errata.
const (
	landlockCreateRulesetErrata = 1 << 1
	mendedSignalsBetweenThreads = 1 << (2 - 1)
)

// allOfLandlock handles every right that a version of Landlock has. What is handled and
// not allowed by a rule is denied, and we add no rules.
func allOfLandlock(version, errata uintptr) unix.LandlockRulesetAttr {
	all := unix.LandlockRulesetAttr{Access_fs: unix.LANDLOCK_ACCESS_FS_REFER - 1} // all rights below it
	if version >= 2 {
		all.Access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		all.Access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 4 {
		all.Access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if version >= 5 {
		all.Access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if version >= 6 {
		all.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		// Each thread gets a domain of its own. Before this erratum was fixed, threads
		// could then not signal each other, and Go's runtime would hang.
		if errata&mendedSignalsBetweenThreads != 0 {
			all.Scoped |= unix.LANDLOCK_SCOPE_SIGNAL
		}
	}
	return all
}

// landlock asks for the version or the errata of this kernel's Landlock.
func landlock(what uintptr) (uintptr, syscall.Errno) {
	answer, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, what)
	return answer, errno
}

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// denySystemCalls makes some system calls fail with EPERM or EACCES, in all threads.
func denySystemCalls() (lacks []error) {
	if err := filterSystemCalls(); err != nil {
		lacks = append(lacks, fmt.Errorf("seccomp: %w", err))
	}
	return lacks
}

func filterSystemCalls() error {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return errors.New("this architecture's numbers are not known")
	}
	instructions, err := bpf.Assemble(systemCallFilter(arch, uint32(os.Getpid())))
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(instructions))
	for i, raw := range instructions {
		filter[i] = unix.SockFilter{Code: raw.Op, Jt: raw.Jt, Jf: raw.Jf, K: raw.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}

	// Older kernels slow a filtered process down (the mitigation of Spectre v4), as if it
	// ran untrusted code. SPEC_ALLOW prevents that.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	} else if thread != 0 {
		return fmt.Errorf("thread %d has a filter of its own", thread)
	}
	return nil
}

func systemCallFilter(arch, pid uint32) []bpf.Instruction {
	const (
		number, architecture = 0, 4 // in struct seccomp_data
		firstX32             = 1 << 30
	)
	argument := func(n uint32) bpf.Instruction { // the lower half: both architectures are little-endian
		return bpf.LoadAbsolute{Off: 16 + 8*n, Size: 4}
	}
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	fail := func(errno syscall.Errno) bpf.Instruction {
		return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	deny := fail(unix.EPERM)

	files, denied := deniedFileCalls, deniedSystemCalls
	if arch == unix.AUDIT_ARCH_X86_64 {
		files = slices.Concat(files, deniedFileCallsOnAMD64)
		denied = slices.Concat(denied, deniedOnAMD64)
	}
	filter := []bpf.Instruction{
		bpf.LoadAbsolute{Off: architecture, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		deny,
		bpf.LoadAbsolute{Off: number, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: firstX32, SkipTrue: 1}, // x32 has the same calls under other numbers
		deny,
	}
	for _, call := range files {
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1}, fail(unix.EACCES))
	}
	for _, call := range denied {
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1}, deny)
	}
	for _, allowed := range onItself(pid) {
		filter = append(filter,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: allowed.call, SkipTrue: 4},
			argument(0),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: allowed.self, SkipTrue: 1},
			allow,
			deny,
		)
	}
	for _, operation := range deniedOperations {
		filter = append(filter,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: operation.call, SkipTrue: 4},
			argument(1),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: operation.number, SkipTrue: 1},
			deny,
			bpf.LoadAbsolute{Off: number, Size: 4},
		)
	}
	filter = append(filter,
		// clone3's flags are in memory, where a filter cannot read them. Go falls back to clone.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		fail(unix.ENOSYS),

		// clone may make threads, but not processes.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE, SkipTrue: 4},
		argument(0),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.CLONE_THREAD, SkipTrue: 1},
		deny,
		allow,

		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SOCKET, SkipTrue: 1},
		allow,

		// socket may make rtnetlink's, which report changes of routes (device/sticky_linux.go).
		argument(0),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_NETLINK, SkipTrue: 3},
		argument(2),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NETLINK_ROUTE, SkipTrue: 1},
		allow,
	)
	return append(filter, deny)
}
