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

// Opening does not wait. On Linux no pipe waits when it is opened for reading and writing; a device may.
func TestNonBlocking(t *testing.T) {
	d, _ := openTest(t, "")
	flags, _, err := syscall.Syscall(syscall.SYS_FCNTL, d.Fd(), syscall.F_GETFL, 0)
	if flags&syscall.O_NONBLOCK == 0 {
		t.Error("opening may wait for ever:", err)
	}
}

// The folder of a new file is synced, also if its name is a link. That no folder in /proc can be synced is no fault.
func TestSyncFolder(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/proc/self/comm", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/proc/self/comm", link} {
		if err := syncFolder(name); !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), "sync /proc/") {
			t.Error(name, err)
		}
		if f, err := Open(name); err != nil || f.Close() != nil {
			t.Error(name, err)
		}
	}
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	next, _ := os.Open(dir)
	few := uint64(next.Fd()) + 1 // enough for the file, too few for its folder
	next.Close()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: few, Max: limit.Max})
	_, err := Open(filepath.Join(dir, "new"))
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if want := "open " + dir + ": too many open files"; fmt.Sprint(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
}
