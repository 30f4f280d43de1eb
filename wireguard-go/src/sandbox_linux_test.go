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
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test starts itself again as the process that enters the sandbox: it cannot leave it.
func init() {
	if path := os.Getenv("TRY_SANDBOX"); path != "" {
		if !trySandbox(path) {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func TestSandbox(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"TRY_SANDBOX=" + path}
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
	landlock uintptr // the version that denies it; 0 if another part of the sandbox does
	want     syscall.Errno
	try      func() error
}

func trySandbox(path string) (ok bool) {
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
	parent := uintptr(os.Getpid())
	call := func(number uintptr, arguments ...uintptr) func() error {
		return func() error {
			arguments := append(arguments, make([]uintptr, 5)...)
			_, _, errno := unix.RawSyscall6(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], 0)
			if pid, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0); pid != parent {
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
		{"another family", 0, unix.EPERM, socket(unix.AF_VSOCK, unix.SOCK_DGRAM, 0)},

		{"UDP", 0, 0, socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP)},
		{"rtnetlink", 0, 0, socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)},
		{"read what is open", 0, 0, func() error { _, err := unix.Pread(file, make([]byte, 4), 0); return err }},
		{"signal a thread", 0, 0, func() error { return unix.Tgkill(os.Getpid(), os.Getpid(), unix.SIGURG) }},
	}
	if int(errata) > 0 && errata&mendedSignalsBetweenThreads != 0 {
		attempts = append(attempts, attempt{"signal a process", 6, unix.EPERM, func() error { return unix.Kill(os.Getppid(), 0) }})
	}
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
			attempt{"getpid of x32", 0, unix.EPERM, call(unix.SYS_GETPID | 1<<30)})
	}

	var threads sync.Map
	tryAll := func() (ok bool) {
		threads.Store(unix.Gettid(), nil)
		ok = true
		for _, a := range attempts {
			if a.landlock > version {
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
	for _, lack := range append(denyFiles(), denySystemCalls()...) {
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

func deniedNumber(name string) uintptr {
	return uintptr(deniedOnAMD64[map[string]int{"fork": 0, "chmod": 2}[name]])
}
