// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

//go:build !cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test starts itself again as the process that enters the sandbox: it cannot leave it.
func init() {
	if path := os.Getenv("TRY_SANDBOX"); path != "" {
		if !trySandbox(path, os.Getenv("PARTS")) {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// The whole of it, and each part alone: an older kernel has one that covers less, or none.
func TestSandbox(t *testing.T) {
	for _, parts := range []string{"both", "Landlock", "seccomp"} {
		t.Run(parts, func(t *testing.T) { testSandbox(t, parts) })
	}
}

func testSandbox(t *testing.T, parts string) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"TRY_SANDBOX=" + path, "PARTS=" + parts}
	if output, err := cmd.CombinedOutput(); err != nil || string(output) != "tried in 4 threads\n" {
		t.Errorf("%v:\n%s", err, output)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "text" {
		t.Errorf("the file now contains %q (%v)", text, err)
	}
}

func TestAllOfLandlock(t *testing.T) {
	const unmended, mended = 0, 1<<0 | 1<<1
	for _, test := range []struct {
		version, errata uintptr
		want            unix.LandlockRulesetAttr
	}{
		{1, unmended, unix.LandlockRulesetAttr{Access_fs: 0x1fff}},
		{2, unmended, unix.LandlockRulesetAttr{Access_fs: 0x3fff}},
		{3, unmended, unix.LandlockRulesetAttr{Access_fs: 0x7fff}},
		{4, mended, unix.LandlockRulesetAttr{Access_fs: 0x7fff, Access_net: 3}},
		{5, mended, unix.LandlockRulesetAttr{Access_fs: 0xffff, Access_net: 3}},
		{6, unmended, unix.LandlockRulesetAttr{Access_fs: 0xffff, Access_net: 3, Scoped: 1}},
		{6, mended, unix.LandlockRulesetAttr{Access_fs: 0xffff, Access_net: 3, Scoped: 3}},
		{99, mended, unix.LandlockRulesetAttr{Access_fs: 0xffff, Access_net: 3, Scoped: 3}},
	} {
		if got := allOfLandlock(test.version, test.errata); got != test.want {
			t.Errorf("version %d, errata %b: %+v, want %+v", test.version, test.errata, got, test.want)
		}
	}
}

// An attempt is something that each sandboxed thread tries, and the expected result.
type attempt struct {
	what     string
	landlock uintptr // the version that denies it; 0 if only another part of the sandbox does
	want     syscall.Errno
	try      func() error
}

func trySandbox(path, parts string) (ok bool) {
	version, _ := landlock(unix.LANDLOCK_CREATE_RULESET_VERSION)
	errata, _ := landlock(landlockCreateRulesetErrata)
	if int(version) < 0 {
		version = 0
	}
	// Opened before entering the sandbox, used inside.
	file, _ := unix.Open(path, unix.O_RDONLY, 0)
	tcp, _ := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	tun, noTUN := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	address := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}

	open := func(path string, flags int) func() error {
		return func() error { _, err := unix.Open(path, flags, 0o600); return err }
	}
	socket := func(family, kind, protocol int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
			unix.Close(fd)
			return err
		}
	}
	itself, parent := uintptr(os.Getpid()), os.Getppid()
	call := func(number uintptr, arguments ...uintptr) func() error {
		return func() error {
			arguments := append(arguments, make([]uintptr, 5)...)
			_, _, errno := unix.RawSyscall6(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], 0)
			if pid, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0); pid != itself {
				unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // we are a child that should not exist
			}
			if errno != 0 {
				return errno
			}
			return nil
		}
	}
	is := func(option int, want int) func() error {
		return func() error {
			if got, err := unix.PrctlRetInt(option, 0, 0, 0, 0); err != nil || got != want {
				return fmt.Errorf("%d, %v", got, err)
			}
			return nil
		}
	}
	program := append([]byte(path), 0) // not executable: without the sandbox, EACCES
	attempts := []attempt{
		{"read a file", 1, unix.EACCES, open(path, unix.O_RDONLY)},
		{"write a file", 1, unix.EACCES, open(path, unix.O_WRONLY)},
		{"make a file", 1, unix.EACCES, open(path+".new", unix.O_CREAT|unix.O_WRONLY)},
		{"list a directory", 1, unix.EACCES, open("/", unix.O_DIRECTORY)},
		{"open a device", 1, unix.EACCES, open("/dev/null", unix.O_RDWR)},
		{"remove a file", 1, unix.EACCES, func() error { return unix.Unlink(path) }},
		{"move a file", 1, unix.EACCES, func() error { return unix.Rename(path, path+".new") }},
		{"truncate a file", 3, unix.EACCES, func() error { return unix.Truncate(path, 0) }},
		{"bind TCP", 4, unix.EACCES, func() error { return unix.Bind(tcp, address) }},
		{"connect TCP", 4, unix.EACCES, func() error { return unix.Connect(tcp, address) }},

		{"signal a process", 6, unix.EPERM, func() error { return unix.Kill(parent, 0) }},

		{"be dumped", 0, 0, is(unix.PR_GET_DUMPABLE, 0)},
		{"get privileges", 0, 0, is(unix.PR_GET_NO_NEW_PRIVS, 1)},
		{"execve", 0, unix.EPERM, call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&program[0])))},
		{"execveat", 0, unix.EPERM, call(unix.SYS_EXECVEAT, uintptr(file), uintptr(unsafe.Pointer(&program[0])))},
		{"clone, a process", 0, unix.EPERM, call(unix.SYS_CLONE, uintptr(unix.SIGCHLD))},
		{"clone, a namespace", 0, unix.EPERM, call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))},
		{"clone3", 0, unix.ENOSYS, call(unix.SYS_CLONE3)},
		{"unshare", 0, unix.EPERM, call(unix.SYS_UNSHARE, 0)},
		{"setns", 0, unix.EPERM, call(unix.SYS_SETNS, uintptr(file))},
		{"ptrace", 0, unix.EPERM, call(unix.SYS_PTRACE, unix.PTRACE_CONT)},
		{"process_vm_readv", 0, unix.EPERM, call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid()))},
		{"pidfd_getfd", 0, unix.EPERM, call(unix.SYS_PIDFD_GETFD, uintptr(file))},
		{"chmod", 0, unix.EPERM, func() error { return unix.Fchmodat(unix.AT_FDCWD, path, 0o666, 0) }},
		{"io_uring_setup", 0, unix.EPERM, call(unix.SYS_IO_URING_SETUP)},
		{"keyctl", 0, unix.EPERM, call(unix.SYS_KEYCTL)},
		{"a Unix socket", 0, unix.EPERM, socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		{"a pair of them", 0, unix.EPERM, func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0); return err }},
		{"TCP", 0, unix.EPERM, socket(unix.AF_INET, unix.SOCK_STREAM, 0)},
		{"TCP over IPv6", 0, unix.EPERM, socket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP)},
		{"uevents", 0, unix.EPERM, socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)},
		{"UDP", 0, unix.EPERM, socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP)},
		{"another family", 0, unix.EPERM, socket(unix.AF_VSOCK, unix.SOCK_DGRAM, 0)},

		{"rtnetlink", 0, 0, socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)},
		{"read what is open", 0, 0, func() error { _, err := unix.Pread(file, make([]byte, 4), 0); return err }},
		{"signal a thread", 0, 0, func() error { return unix.Tgkill(os.Getpid(), os.Getpid(), unix.SIGURG) }},
	}
	attempts = append(attempts, deniedByCalls(path, file, call, socket)...)
	if noTUN == nil {
		attempts = append(attempts, attempt{"ioctl on a device", 0, 0, func() error {
			_, err := unix.IoctlGetUint32(tun, unix.TUNGETFEATURES)
			return err
		}})
	}
	if runtime.GOARCH == "amd64" {
		attempts = append(attempts,
			attempt{"fork", 0, unix.EPERM, call(deniedNumber("fork"))},
			attempt{"chmod(2)", 0, unix.EPERM, call(deniedNumber("chmod"))},
			attempt{"open(2)", 0, unix.EACCES, call(uintptr(deniedFileCallsOnAMD64[0]), uintptr(unsafe.Pointer(&program[0])))},
			attempt{"getpid of x32", 0, unix.EPERM, call(unix.SYS_GETPID | 1<<30)})
	}

	// denies tells whether these parts of the sandbox have the attempt's result.
	denies := func(a attempt) bool {
		byLandlock := 0 < a.landlock && a.landlock <= version
		if a.what == "signal a process" && (int(errata) < 0 || errata&mendedSignalsBetweenThreads == 0) {
			byLandlock = false
		}
		switch onlyLandlock := strings.HasSuffix(a.what, " TCP"); parts { // of a socket from before
		case "Landlock":
			return byLandlock || a.want == 0
		case "seccomp":
			return !onlyLandlock && a.what != "be dumped"
		default:
			return !onlyLandlock || byLandlock
		}
	}

	var threads sync.Map
	tryAll := func() (ok bool) {
		threads.Store(unix.Gettid(), nil)
		ok = true
		for _, a := range attempts {
			if !denies(a) {
				continue
			}
			want := error(nil)
			if a.want != 0 {
				want = a.want
			}
			if err := a.try(); err != want {
				fmt.Printf("%s: got %v, want %v\n", a.what, err, want)
				ok = false
			}
		}
		return ok
	}

	// This thread, two that exist before the sandbox, and one that is made in it.
	runtime.LockOSThread()
	begin, results := make(chan struct{}), make(chan bool)
	inThread := func(ready chan<- struct{}) {
		runtime.LockOSThread() // for good, so that the thread ends with the goroutine
		ready <- struct{}{}
		<-begin
		results <- tryAll()
	}
	ready := make(chan struct{})
	for range 2 {
		go inThread(ready)
		<-ready
	}
	var lacks []error
	if parts == "seccomp" {
		syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	} else {
		lacks = denyFiles()
	}
	if parts != "Landlock" {
		lacks = append(lacks, denySystemCalls()...)
	}
	for _, lack := range lacks {
		if !errors.Is(lack, unix.ENOSYS) && !errors.Is(lack, unix.EOPNOTSUPP) { // unless the kernel is too old
			fmt.Println(lack)
			return false
		}
	}
	go inThread(ready)
	<-ready
	close(begin)
	ok = tryAll()
	for range 3 {
		ok = <-results && ok
	}
	count := 0
	threads.Range(func(any, any) bool { count++; return true })
	fmt.Printf("tried in %d threads\n", count)
	return ok
}

// deniedByCalls are attempts that Landlock does not deny, in any version.
func deniedByCalls(path string, file int, call func(uintptr, ...uintptr) func() error, socket func(int, int, int) func() error) []attempt {
	name := uintptr(unsafe.Pointer(&append([]byte(path), 0)[0]))
	attribute := uintptr(unsafe.Pointer(&[]byte("user.a\x00")[0]))
	queue := uintptr(unsafe.Pointer(&[]byte("queue\x00")[0]))
	buffer := make([]byte, 512)
	into := uintptr(unsafe.Pointer(&buffer[0]))
	itself, parent, here := uintptr(os.Getpid()), uintptr(os.Getppid()), ^uintptr(99) // AT_FDCWD
	all := []attempt{
		{"signal its group", 0, unix.EPERM, call(unix.SYS_KILL, 0, 0)},
		{"signal all", 0, unix.EPERM, call(unix.SYS_KILL, ^uintptr(0), 0)},
		{"tgkill another", 0, unix.EPERM, call(unix.SYS_TGKILL, parent, parent, 0)},
		{"tkill", 0, unix.EPERM, call(unix.SYS_TKILL, parent, 0)},
		{"rt_sigqueueinfo", 0, unix.EPERM, call(unix.SYS_RT_SIGQUEUEINFO, parent, 0, into)},
		{"rt_tgsigqueueinfo", 0, unix.EPERM, call(unix.SYS_RT_TGSIGQUEUEINFO, parent, parent, 0, into)},
		{"pidfd_open", 0, unix.EPERM, call(unix.SYS_PIDFD_OPEN, parent)},
		{"pidfd_send_signal", 0, unix.EPERM, call(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(file))},
		{"fcntl, an owner", 0, unix.EPERM, call(unix.SYS_FCNTL, uintptr(file), unix.F_SETOWN, parent)},
		{"fcntl, an owner's signal", 0, unix.EPERM, call(unix.SYS_FCNTL, uintptr(file), unix.F_SETSIG, 9)},
		{"ioctl, an owner", 0, unix.EPERM, call(unix.SYS_IOCTL, uintptr(file), fioSetOwn, into)},
		{"setpriority", 0, unix.EPERM, call(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, parent, 19)},
		{"ioprio_set", 0, unix.EPERM, call(unix.SYS_IOPRIO_SET, 1, parent, 3<<13)},
		{"sched_setscheduler", 0, unix.EPERM, call(unix.SYS_SCHED_SETSCHEDULER, parent, 5, into)},
		{"sched_setaffinity", 0, unix.EPERM, call(unix.SYS_SCHED_SETAFFINITY, parent, 8, into)},
		{"another's limits", 0, unix.EPERM, call(unix.SYS_PRLIMIT64, parent, unix.RLIMIT_NOFILE, 0, into)},

		{"setxattr", 0, unix.EPERM, call(unix.SYS_SETXATTR, name, attribute, attribute, 1)},
		{"fsetxattr", 0, unix.EPERM, call(unix.SYS_FSETXATTR, uintptr(file), attribute, attribute, 1)},
		{"getxattr", 0, unix.EPERM, call(unix.SYS_GETXATTR, name, attribute)},
		{"listxattr", 0, unix.EPERM, call(unix.SYS_LISTXATTR, name)},
		{"removexattr", 0, unix.EPERM, call(unix.SYS_REMOVEXATTR, name, attribute)},
		{"utimensat", 0, unix.EPERM, call(unix.SYS_UTIMENSAT, here, name)},
		{"fchownat", 0, unix.EPERM, call(unix.SYS_FCHOWNAT, here, name, uintptr(os.Getuid()), ^uintptr(0))},
		{"fchown", 0, unix.EPERM, call(unix.SYS_FCHOWN, uintptr(file), ^uintptr(0), ^uintptr(0))},
		{"fchmod", 0, unix.EPERM, call(unix.SYS_FCHMOD, uintptr(file), 0o600)},
		{"stat", 0, unix.EPERM, call(unix.SYS_NEWFSTATAT, here, name, into)},
		{"statx", 0, unix.EPERM, call(unix.SYS_STATX, here, name, 0, 0, into)},
		{"statfs", 0, unix.EPERM, call(unix.SYS_STATFS, name, into)},
		{"access", 0, unix.EPERM, call(unix.SYS_FACCESSAT, here, name)},
		{"readlink", 0, unix.EPERM, call(unix.SYS_READLINKAT, here, name, into, 9)},
		{"chdir", 0, unix.EPERM, call(unix.SYS_CHDIR, name)},
		{"name_to_handle_at", 0, unix.EPERM, call(unix.SYS_NAME_TO_HANDLE_AT, here, name, into, into)},
		{"open_tree", 0, unix.EPERM, call(unix.SYS_OPEN_TREE, here, name)},
		{"inotify", 0, unix.EPERM, call(unix.SYS_INOTIFY_INIT1)},
		{"fanotify", 0, unix.EPERM, call(unix.SYS_FANOTIFY_INIT, 0x200)},

		{"shmget", 0, unix.EPERM, call(unix.SYS_SHMGET, 0, 4096, 0o600)},
		{"semget", 0, unix.EPERM, call(unix.SYS_SEMGET, 0, 1, 0o600)},
		{"msgget", 0, unix.EPERM, call(unix.SYS_MSGGET, 0, 0o600)},
		{"mq_open", 0, unix.EPERM, call(unix.SYS_MQ_OPEN, queue, unix.O_RDONLY)},
		{"UDP-Lite", 0, unix.EPERM, socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)},
		{"UDP-Lite over IPv6", 0, unix.EPERM, socket(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)},
		{"UDP as Go makes it", 0, unix.EPERM, socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)},
		{"ping", 0, unix.EPERM, socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)},

		{"its own limits", 0, 0, call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, 0, into)},
		{"signal itself", 0, 0, call(unix.SYS_KILL, itself, 0)},
		{"fstat", 0, 0, call(unix.SYS_FSTAT, uintptr(file), into)},
		{"fcntl", 0, 0, func() error { _, err := unix.FcntlInt(uintptr(file), unix.F_GETFL, 0); return err }},
	}
	if runtime.GOARCH == "amd64" {
		for _, number := range deniedOnAMD64[3:] {
			all = append(all, attempt{fmt.Sprint("call ", number), 0, unix.EPERM, call(uintptr(number), name, into, into)})
		}
	}
	return all
}

func deniedNumber(name string) uintptr {
	return uintptr(deniedOnAMD64[map[string]int{"fork": 0, "chmod": 2}[name]])
}
