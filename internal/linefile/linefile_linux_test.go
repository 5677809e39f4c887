package linefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Open does not block. On Linux, opening a device for reading and writing could.
func TestOpenDoesNotBlock(t *testing.T) {
	d, _ := openTest(t, "")
	flags, _, err := syscall.Syscall(syscall.SYS_FCNTL, d.Fd(), syscall.F_GETFL, 0)
	if flags&syscall.O_NONBLOCK == 0 {
		t.Error("opening could block:", err)
	}
}

// Open syncs the directory of a new file, even if its name is a link. It accepts that those in /proc cannot be synced.
func TestSyncDirectory(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/proc/self/comm", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/proc/self/comm", link} {
		if err := syncDirectory(name); !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), "sync /proc/") {
			t.Error(name, err)
		}
		if f, err := Open(name); err != nil || f.Close() != nil {
			t.Error(name, err)
		}
	}
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	next, _ := os.Open(dir)
	few := uint64(next.Fd()) + 1 // enough for the file, not for its directory
	next.Close()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: few, Max: limit.Max})
	_, err := Open(filepath.Join(dir, "new"))
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if want := "open " + dir + ": too many open files"; fmt.Sprint(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
}
