package linefile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s: got\n%.300s\nwant\n%.300s", what, got, want)
	}
}

var errDisk = errors.New("the disk is broken")

// testDisk is a file whose calls fail with errDisk if a test wants it.
type testDisk struct {
	*os.File
	broken     string // which of "write" (half of it), "truncate", "sync" and "stat" fail
	duringSync func() // called by Sync
	synced     string // the content at the last sync
	bytesRead  int64
}

// openTest creates a file and opens it on a testDisk that works.
func openTest(t *testing.T, content string) (*testDisk, *File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lines")
	err := edit(name, content, 1)
	file, lockErr := openLocked(name)
	d := &testDisk{File: file, duringSync: func() {}}
	f := &File{name: name, disk: d}
	if err := errors.Join(err, lockErr, f.load()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return d, f
}

// content returns what the open file holds, even if it has been moved or deleted.
func (d *testDisk) content() string {
	data, _ := io.ReadAll(io.NewSectionReader(d.File, 0, 1<<20))
	return string(data)
}

// isBroken reports whether call fails.
func (d *testDisk) isBroken(call string) bool { return strings.Contains(d.broken, call) }

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.bytesRead += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	if !d.isBroken("write") {
		return d.File.WriteAt(p, at)
	}
	n, _ := d.File.WriteAt(p[:len(p)/2], at)
	return n, errDisk
}

func (d *testDisk) Truncate(size int64) error {
	if d.isBroken("truncate") {
		return errDisk
	}
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	if d.duringSync(); d.isBroken("sync") {
		return errDisk
	}
	d.synced = d.content()
	return nil
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if d.isBroken("stat") {
		return nil, errDisk
	}
	return d.File.Stat()
}

// edit writes a file as another program does. The file's time is the given second, which is long ago.
func edit(name, content string, second int64) error {
	return errors.Join(os.WriteFile(name, []byte(content), 0o644), os.Chtimes(name, time.Time{}, time.Unix(second, 0)))
}

// read returns the complete lines, "|", and the error, if any.
func read(s *Scanner) (all string) {
	for s.Scan() {
		all += s.Text() + "\n"
	}
	return strings.TrimSuffix(fmt.Sprint(all, "|", s.Err()), "<nil>")
}

// wantSynced checks that the file consists of these complete lines and this partial line, and is synced.
func wantSynced(t *testing.T, what string, d *testDisk, f *File, complete, partial string) {
	t.Helper()
	_, got, err := End(f.Reader(), 5)
	all := complete + partial
	same(t, what, fmt.Sprintf("%q, %q, %q, %q %v", d.content(), d.synced, read(f.Scanner(5)), got, err),
		fmt.Sprintf("%q, %q, %q, %q <nil>", all, all, complete+"|", partial))
}

// do takes a step, which adds this text to the complete lines: it appends the line "new", completes the partial line
// "tail", or drops it.
func do(f *File, step string) error {
	switch step {
	case drop:
		return f.DropPartial()
	case complete:
		return f.CompletePartial([]byte("tail"))
	}
	return f.Append([]byte("new"))
}

const app, complete, drop = "new\n", "tail\n", "" // steps

// A crash may have left any partial line. A step on a broken disk returns the error, unless the disk has done it all
// the same, and leaves the lines as they were. Once the disk works again, the next step is not affected.
func TestBrokenDisk(t *testing.T) {
	const first = "on\r\n\n"
	for bits := range 1 << 4 {
		broken := ""
		for i, call := range []string{"write ", "truncate ", "sync ", "stat "} {
			broken += strings.Repeat(call, bits>>i&1)
		}
		for _, c := range [][3]string{ // partial line, step, next step
			{"", app, app}, {"n", app, app}, {"new", app, app}, {"other", app, app}, {"other", drop, app},
			{"tail", app, app}, {"tail", drop, app}, {"tail", complete, app}, {"tail", complete, complete},
			{"tail", drop, complete},
		} {
			what := fmt.Sprintf("%q, broken %s", c, broken)
			d, f := openTest(t, first+c[0])
			wantSynced(t, what, d, f, first, c[0])
			d.broken = broken
			err, lines := do(f, c[1]), first+c[1]
			if err == nil {
				wantSynced(t, what, d, f, lines, "")
			} else {
				lines = first
				left, ok := strings.CutPrefix(d.content(), first)
				isThere := c[1] != complete || strings.HasPrefix(left, c[0])
				isRestored := d.isBroken("truncate") || !strings.Contains(left, "\n")
				got := fmt.Sprint(ok, isThere, isRestored, errors.Is(err, errDisk), read(f.Scanner(5)))
				same(t, what, got, "true true true true"+first+"|")
			}
			d.broken = ""
			same(t, what, do(f, c[2]), nil)
			wantSynced(t, what, d, f, lines+c[2], "")
		}
	}
}

// While a file is not as we left it, even if it changes during a sync, no step writes to it. If its content is known,
// it may have another time.
func TestErrChanged(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can change, move or delete a file that is open here")
	}
	want := func(f *File, step, change string) {
		t.Helper()
		err := do(f, step)
		same(t, change, fmt.Sprint(err, errors.Is(err, ErrChanged)), f.name+": changed by another program: "+change+" true")
	}
	move := func(name, _ string) error { return os.Rename(name, name+".old") }
	for what, change := range map[string]func(name, content string) error{
		"deleted or moved":         move,
		"replaced by another file": func(name, old string) error { return errors.Join(move(name, ""), edit(name, old, 2)) },
		"edited":                   func(name, old string) error { return edit(name, strings.ToUpper(old), 2) },
		"touched":                  func(name, old string) error { return edit(name, old, 2) },
		"its size is now 2 bytes":  func(name, _ string) error { return os.Truncate(name, 2) },
	} {
		for i, step := range []string{app, complete, drop, app, complete, drop, app} {
			d, f := openTest(t, "one\n"+[]string{"tail", ""}[i/6])
			read(f.Scanner(5))
			content := ""
			d.duringSync = func() {
				d.duringSync = func() {}
				same(t, "change", change(f.name, d.content()), nil)
				content = d.content()
			}
			if i < 3 { // before the step
				d.duringSync()
			}
			if what == "touched" {
				same(t, what, do(f, step), nil)
				d.bytesRead = 0
				same(t, "append, and bytes read", fmt.Sprint(do(f, app), d.bytesRead), "<nil> 0")
				wantSynced(t, what, d, f, "one\n"+step+app, "")
				continue
			}
			want(f, step, what)
			same(t, what, d.content(), content)
			if os.Rename(f.name+".old", f.name) == nil {
				same(t, what+", and moved back", do(f, step), nil)
				wantSynced(t, what, d, f, "one\n"+step, "")
			}
		}
	}
	d, f := openTest(t, "one\n")
	d.broken = "write truncate stat" // so a part of the line remains, and its size is unknown
	do(f, app)
	d.broken = ""
	os.Truncate(f.name, 2)
	want(f, app, "its size is now 2 bytes")
}

// While each byte is written to one file and then to another, the snapshot of the first is never behind. That of the
// second ends where the file ended when it was opened.
func TestOpenSnapshots(t *testing.T) {
	first, f := openTest(t, "")
	second, g := openTest(t, "")
	go func() {
		for range 500 {
			first.WriteString("x")
			second.WriteString("x")
			time.Sleep(50 * time.Microsecond) // about as long as it takes to open both files
		}
	}()
	deadline := time.Now().Add(10 * time.Second)
	for size := int64(0); size < 500; {
		a, b, err := OpenSnapshots(f.name, g.name)
		if err != nil || time.Now().After(deadline) {
			t.Fatal(size, err)
		}
		size, err = io.Copy(io.Discard, b)
		same(t, "read, close", errors.Join(err, a.Close(), b.Close()), nil)
		if size != b.Size() || size > a.Size() {
			t.Fatalf("it read %d of %d bytes, when the first file had %d", size, b.Size(), a.Size())
		}
	}
}

// A file is opened once at a time. An error names the file, and leaves nothing open. The file's directory is synced,
// even if the name is a link, unless it cannot be synced, as in /proc.
func TestOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the garbage collector closes forgotten files
	dir := t.TempDir()
	name, none := filepath.Join(dir, "new"), filepath.Join(dir, "none", "lines")
	Open(os.DevNull) // the first call makes the runtime open files of its own
	before, _ := os.ReadDir("/proc/self/fd")
	for range 2 {
		f, err := Open(name)
		line := []byte("new!")
		same(t, "open, append", fmt.Sprint(err, f.Append(line[:3]), string(line)), "<nil> <nil>new!")
		for bad, why := range map[string]string{
			name: ": already in use by a server", os.DevNull: " is not a regular file", dir: "", none: "",
		} {
			_, err := Open(bad)
			same(t, fmt.Sprintf("%s is the cause of %v", bad, err), strings.Contains(fmt.Sprint(err), bad+why), true)
			same(t, bad+" is in use", errors.Is(err, ErrInUse), bad == name)
		}
		_, _, err1 := OpenSnapshots(name, none)
		_, _, err2 := OpenSnapshots(none, name)
		same(t, "no file", errors.Is(err1, os.ErrNotExist) && errors.Is(err2, os.ErrNotExist), true)
		same(t, "close", f.Close(), nil)
	}
	after, _ := os.ReadDir("/proc/self/fd")
	same(t, "open files", len(after), len(before))
	_, f := openTest(t, "")
	if runtime.GOOS == "linux" {
		err := os.Symlink("/proc/self/comm", f.name+".link")
		same(t, "sync the directory of a link", errors.Join(err, syncDirectory(f.name+".link")), nil)
	}
	f.name += ".none"
	same(t, "load syncs the directory", errors.Is(f.load(), os.ErrNotExist), runtime.GOOS != "windows")
}

// Open reads the partial line and up to 64 KiB before it, however long the file is. End reads the last complete line
// too, and then up to 64 KiB before that.
func TestEnd(t *testing.T) {
	const chunk = 64 << 10
	for _, size := range []int{1, chunk - 1, chunk, chunk + 1, 3 * chunk} {
		x := strings.Repeat("x", size)
		for _, complete := range []string{"", x + "\n", "\n" + x + "\n", strings.Repeat("\n", 9*chunk) + x + "\n"} {
			for _, partial := range []string{"p", x, ""} {
				d, f := openTest(t, complete+partial)
				opened, last := d.bytesRead, strings.Trim(complete, "\n")
				maxLine := max(len(last), len(partial))
				line, got, err := End(f.Reader(), maxLine)
				what := fmt.Sprintf("%d bytes, partial line of %d bytes", len(complete), len(partial))
				same(t, what, fmt.Sprint(line != nil, string(line) == last, string(got) == partial, err),
					fmt.Sprint(complete != "", true, true, nil))
				if opened > int64(len(partial)+chunk) || d.bytesRead-opened > int64(2*(size+len(partial)+chunk+1)) {
					t.Errorf("%s: Open read %d bytes, End %d", what, opened, d.bytesRead-opened)
				}
				if _, _, err = End(f.Reader(), maxLine-1); maxLine > 0 {
					same(t, what, err, fmt.Sprintf("longer than %d bytes", maxLine-1))
				}
			}
		}
	}
}

// A line may have maxLine bytes. A longer one is an error, and is not read to its end.
func TestLongLines(t *testing.T) {
	for _, maxLine := range []int{0, 5, 3 * MaxLine} {
		x := strings.Repeat("x", maxLine)
		same(t, "two lines", read(NewScanner(iotest.HalfReader(strings.NewReader(x+"\n"+x)), maxLine)), x+"\n|")
		for _, more := range []string{"x", "x\nb", strings.Repeat("x", 9*MaxLine)} {
			r := strings.NewReader("\n" + x + more)
			same(t, "a byte more", read(NewScanner(r, maxLine)), fmt.Sprintf("\n|line 2: longer than %d bytes", maxLine))
			same(t, "most is not read", r.Len() >= len(more)-5*MaxLine, true)
		}
	}
	broken := io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(errDisk))
	same(t, "an error", read(NewScanner(broken, 5)), "a\n|line 2: the disk is broken")
}

// Decode accepts only what Encode returns.
func TestDecode(t *testing.T) {
	type line struct {
		Index, BPM int
		Notes      []string
	}
	const good = `{"Index":-1,"BPM":2147483647,"Notes":["a\u003cb"]}`
	var v line
	same(t, good, fmt.Sprint(Decode([]byte(good), &v), v, string(Encode(v))), "<nil> {-1 2147483647 [a<b]}"+good)
	want := func(line string) string { return "not canonical JSON: want " + strconv.QuoteToASCII(line) }
	for want, lines := range map[string][]string{
		want(`{"Index":1,"BPM":2,"Notes":null}`): {
			`{"Index": 1,"BPM":2,"Notes":null}`, `{"Index":1,"BPM":2,"Notes":null} `, `{"index":1,"BPM":2,"Notes":null}`,
			`{"BPM":2,"Index":1,"Notes":null}`, `{"Index":1,"BPM":2}`, `{"Index":1,"BPM":2,"Notes":null,"More":3}`,
		},
		want("{\"Index\":1,\"BPM\":0,\"Notes\":[\"\ufffd\"]}"): {"{\"Index\":1,\"BPM\":-0,\"Notes\":[\"\xff\"]}"},
		`bad JSON: "`: {`{}{}`, `{"Notes":[1]}`, `{"BPM":7.5}`, "\u009b", "{\"\u009b\u202e\":1", `{"BPM":{"\u009b":1}}`},
		"line ends in CR LF; save the file with Unix line ends":   {good + "\r", "\r"},
		"begins with a byte order mark; save the file without it": {"\ufeff" + good},
		"begins with 2 zero bytes, as after a power cut":          {"\x00\x00" + good},
		"empty line": {``},
	} {
		for _, bad := range lines {
			got := fmt.Sprint(Decode([]byte(bad), new(line)))
			isUnsafe := func(r rune) bool { return r < ' ' || r > '~' && r != '…' }
			if !strings.HasPrefix(got, want) || strings.ContainsFunc(got, isUnsafe) {
				t.Errorf("%q: got %q, want %q", bad, got, want)
			}
		}
	}
}
