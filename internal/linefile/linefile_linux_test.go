package linefile

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
)

// handles returns how many files this process has open.
func handles(t *testing.T) int {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// A pipe is refused without waiting, and nothing stays open after whatever Open refuses.
func TestHandles(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes forgotten files
	name, pipe := file(t, ""), filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	Open(pipe) // the first one makes the runtime open files of its own
	before := handles(t)
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	// No pipe waits when it is opened for reading and writing on Linux; a device may.
	flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, f.disk.(*os.File).Fd(), syscall.F_GETFL, 0)
	if flags&syscall.O_NONBLOCK == 0 {
		t.Error("opening may wait for ever")
	}
	if _, err := Open(name); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if _, err := Open(pipe); err == nil || !strings.HasSuffix(err.Error(), "is not a regular file") {
		t.Error(err)
	}
	f.Close()
	f, _ = Open(name)
	fd := f.disk.(*os.File).Fd()
	f.Close()
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	enough := syscall.Rlimit{Cur: uint64(fd) + 1, Max: limit.Max} // for the file, not for its folder
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &enough)
	_, err = Open(name)
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if !errors.Is(err, syscall.EMFILE) || !strings.HasPrefix(err.Error(), "open "+filepath.Dir(name)+":") {
		t.Error(err)
	}
	if after := handles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// The folder that is synced is the file's own, also if the file is opened by a link.
func TestOpenFolder(t *testing.T) {
	name, link := file(t, ""), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	want, _ := os.Stat(filepath.Dir(name))
	for _, name := range []string{name, link} {
		folder, err := openFolder(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := folder.Stat(); err != nil || !os.SameFile(got, want) {
			t.Error(name, got, err)
		}
		folder.Close()
	}
}
