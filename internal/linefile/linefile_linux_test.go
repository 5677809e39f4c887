package linefile

import (
	"errors"
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

// The folder that is synced is the file's own, also if the file is opened by a link: no folder in /proc can be synced.
func TestSyncFolder(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc/self/comm", link); err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	for _, name := range []string{"/proc/self/comm", link} {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		err = lockedFile{file}.SyncFolder()
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1, Max: limit.Max}) // too few to open a folder
		unopened := lockedFile{file}.SyncFolder()
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
		if !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), "sync /proc/") || !errors.Is(unopened, syscall.EMFILE) {
			t.Error(name, err, unopened)
		}
	}
}
