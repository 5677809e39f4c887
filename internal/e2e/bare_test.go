//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBareEnvironments plays where little else is there, as in a container. The root holds the server and, on a file
// system of its own, a directory for its files. SIGTERM draws the open round and ends the server.
func TestBareEnvironments(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can change its root directory, user and namespaces")
	}
	root := mount(t, `mount -t tmpfs tmpfs "$0"; mkdir -m 777 "$0/data"`)
	build := exec.Command("go", "build", "-o", filepath.Join(root, "server"), "proofofstake")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // a static binary
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building a static server: %v\n%s", err, out)
	}
	files := "CHAIN_FILE=/data/chain.jsonl DRAWS_FILE=/data/draws.jsonl"
	for name, attr := range map[string]*syscall.SysProcAttr{
		"empty root":        {Chroot: root},
		"unprivileged user": {Chroot: root, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
		"PID 1":             {Chroot: root, Cloneflags: syscall.CLONE_NEWPID},
		"read-only root":    {Chroot: root},
		"no terminal":       {Setsid: true},
		"closed output":     {Setsid: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := server(t, t.TempDir(), "ROUND=1h")
			if attr.Chroot != "" {
				script := `rm -f "$0"/data/*`
				if name == "read-only root" {
					script += `; mount -t tmpfs -o mode=777 tmpfs "$0/data"; mount -o remount,ro "$0"`
					t.Cleanup(func() { pipe(t, "", "sh", "-ec", `umount "$0/data"; mount -o remount,rw "$0"`, root) })
				}
				pipe(t, "", "sh", "-ec", script, root)
				s = server(t, "/", "ROUND=1h "+files)
				s.Path = "/server"
			}
			attr.Pdeathsig = syscall.SIGKILL
			s.SysProcAttr = attr
			if name == "closed output" {
				free, _ := net.Listen("tcp", "127.0.0.1:0")
				s.addr = free.Addr().String()
				free.Close()
				s.Args = []string{"sh", "-c", `exec "$0" <&- >&- 2>&-`, s.Path}
				s.Path, s.Env = "/bin/sh", append(s.Env, "ADDR="+s.addr)
				s.launch()
				for end := time.Now().Add(timeout); time.Now().Before(end); {
					if conn, err := net.Dial("tcp", s.addr); err == nil {
						conn.Close()
						break
					}
					<-time.After(10 * time.Millisecond)
				}
			} else {
				s.launch().listens()
			}
			c := s.joins(5)
			c.types("70\n")
			c.wait(proposed)
			s.Process.Signal(syscall.SIGTERM)
			c.wait(forged + sealed + bpmPrompt + shutdown + "$")
			if matches(t, s.result(), "^0 "); attr.Chroot != "" {
				verify := server(t, "/", files+" verify")
				verify.Path, verify.SysProcAttr = s.Path, attr
				matches(t, verify.launch().result(), "^0 ok: 2 blocks,.*\nok: 1 draw\n")
			}
		})
	}
	if out := fmt.Sprint(strings.Fields(pipe(t, "", "ls", "-A", root))); out != "[0 data server]" {
		t.Errorf("in the root: %s", out)
	}
}
