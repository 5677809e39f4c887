package linefile

import (
	"errors"
	"fmt"
	"io"
	"math"
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

// err returns errDisk if call fails.
func (d *testDisk) err(call string) error {
	if strings.Contains(d.broken, call) {
		return errDisk
	}
	return nil
}

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.bytesRead += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	if d.err("write") != nil {
		p = p[:len(p)/2]
	}
	n, err := d.File.WriteAt(p, at)
	return n, errors.Join(err, d.err("write"))
}

func (d *testDisk) Truncate(size int64) error {
	if err := d.err("truncate"); err != nil {
		return err
	}
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	if d.duringSync(); d.err("sync") == nil {
		d.synced = d.content()
	}
	return d.err("sync")
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if err := d.err("stat"); err != nil {
		return nil, err
	}
	return d.File.Stat()
}

// edit writes a file as another program does. The file's time is the given second, which is long ago.
func edit(name, content string, second int64) error {
	return errors.Join(os.WriteFile(name, []byte(content), 0o644), os.Chtimes(name, time.Time{}, time.Unix(second, 0)))
}

// read returns the complete lines, "|", and the error, if any. It checks the line numbers.
func read(s *Scanner) (all string) {
	for n := 1; s.Scan(); n++ {
		if all += s.Text() + "\n"; s.Number() != n {
			all += fmt.Sprintf("this line has number %d\n", s.Number())
		}
	}
	if s.Scan() || s.Err() != nil {
		return fmt.Sprint(all, "|", s.Err())
	}
	return all + "|"
}

// wantSynced checks that the file consists of these complete lines and this partial line, and is synced.
func wantSynced(t *testing.T, what string, d *testDisk, f *File, complete, partial string) {
	t.Helper()
	_, got, err := End(f.Reader(), 5)
	all := complete + partial
	same(t, what, fmt.Sprintf("%q, %q, %q, %q %v", d.content(), d.synced, read(f.Scanner(5)), got, err),
		fmt.Sprintf("%q, %q, %q, %q <nil>", all, all, complete+"|", partial))
}

// do takes a step: A appends the line "new", C completes the partial line, which is "tail", D drops it.
func do(f *File, step string) error {
	switch step {
	case "A":
		return f.Append([]byte("new"))
	case "C":
		return f.CompletePartial([]byte("tail"))
	}
	return f.DropPartial()
}

// A crash may have left any partial line. A step on a broken disk returns the error, unless the disk has done it all
// the same, and leaves the lines as they were. Once the disk works again, the next step is not affected.
func TestBrokenDisk(t *testing.T) {
	const first = "on\r\n\n"
	partials, adds := []string{"tail", "", "n", "new", "other"}, map[string]string{"A": "new\n", "C": "tail\n", "D": ""}
	for bits := range 1 << 4 {
		broken := ""
		for i, call := range []string{"write ", "truncate ", "sync ", "stat "} {
			broken += strings.Repeat(call, bits>>i&1)
		}
		for _, steps := range []string{"AA", "DA", "CA", "CC", "DC"} {
			for _, partial := range partials[:map[bool]int{true: 1, false: 5}[strings.Contains(steps, "C")]] {
				what := fmt.Sprintf("%s with partial line %q, broken %s", steps[:1], partial, broken)
				d, f := openTest(t, first+partial)
				wantSynced(t, what, d, f, first, partial)
				d.broken = broken
				err, complete := do(f, steps[:1]), first+adds[steps[:1]]
				if err == nil {
					wantSynced(t, what, d, f, complete, "")
				} else {
					complete = first
					left, ok := strings.CutPrefix(d.content(), first)
					isPartial := steps[0] != 'C' || strings.HasPrefix(left, partial)
					isRestored := d.err("truncate") != nil || !strings.Contains(left, "\n")
					got := fmt.Sprint(ok, isPartial, isRestored, errors.Is(err, errDisk), read(f.Scanner(5)))
					same(t, what, got, "true true true true"+first+"|")
				}
				d.broken = ""
				what += ", then " + steps[1:]
				same(t, what, do(f, steps[1:]), nil)
				wantSynced(t, what, d, f, complete+adds[steps[1:]], "")
			}
		}
	}
}

// skipOnWindows skips a test in which other programs change a file that is open.
func skipOnWindows(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can change, move or delete a file that is open here")
	}
}

// While a file is not as we left it, even if it changes during a sync, no step writes to it. If its content is known,
// it may have another time.
func TestErrChanged(t *testing.T) {
	skipOnWindows(t)
	const errTime = "its time has changed"
	move := func(name, _ string) error { return os.Rename(name, name+".old") }
	replace := func(name, content string) error { return errors.Join(move(name, ""), edit(name, content, 2)) }
	for _, c := range []struct {
		known, unknown string // the error if the content is known, and if not
		change         func(name, content string) error
	}{
		{"deleted or moved", "deleted or moved", move}, {"replaced by another file", "replaced by another file", replace},
		{"edited", errTime, func(name, content string) error { return edit(name, strings.ToUpper(content), 2) }},
		{"", errTime, func(name, content string) error { return edit(name, content, 2) }},
		{"its size is now 2 bytes", "its size is now 2 bytes", func(name, _ string) error { return os.Truncate(name, 2) }},
	} {
		for step, complete := range map[string]string{"A": "one\nnew\n", "C": "one\ntail\n", "D": "one\n"} {
			for i := range 8 {
				isBefore, isKnown, partial, content := i&1 == 0, i&2 == 0, []string{"tail", ""}[i>>2], ""
				if step != "A" && partial == "" {
					continue
				}
				d, f := openTest(t, "one\n"+partial)
				if isKnown {
					read(f.Scanner(5))
				}
				d.duringSync = func() {
					d.duringSync = func() {}
					same(t, "change", c.change(f.name, d.content()), nil)
					content = d.content()
				}
				if isBefore {
					d.duringSync()
				}
				err := do(f, step)
				what := fmt.Sprintf("%s, then %s %s, known %v", step, c.known, map[bool]string{true: "before"}[isBefore], isKnown)
				if c.known == "" && isKnown {
					same(t, what, err, nil)
					wantSynced(t, what, d, f, complete, "")
					d.bytesRead = 0
					same(t, "append, and bytes read", fmt.Sprint(do(f, "A"), d.bytesRead), "<nil> 0")
					continue
				}
				want := fmt.Sprintf("%s: %v: %s", f.name, ErrChanged, map[bool]string{true: c.known, false: c.unknown}[isKnown])
				same(t, what, fmt.Sprint(err, errors.Is(err, ErrChanged), d.content()), want+" true"+content)
				if os.Rename(f.name+".old", f.name) == nil {
					same(t, what+", moved back", do(f, step), nil)
					wantSynced(t, what, d, f, complete, "")
				}
			}
		}
	}
	d, f := openTest(t, "one\n")
	d.broken = "write truncate stat" // so a part of the line remains, and its size is unknown
	do(f, "A")
	d.broken = ""
	os.Truncate(f.name, 2)
	same(t, "truncated after a failure", do(f, "A"), f.name+": changed by another program: its size is now 2 bytes")
	f.Close()
	same(t, "closed", do(f, "A"), f.name+": changed by another program: closed")
	f.name += "/lines"
	same(t, "cannot be looked at", do(f, "A") != nil, true)
}

// A snapshot may be of a file in use, and ends where the file ended when it was opened. While each byte is written to
// one file and then to another, the snapshot of the first is never behind.
func TestOpenSnapshots(t *testing.T) {
	first, f := openTest(t, "one\ntail")
	a, b, err := OpenSnapshots(f.name, os.DevNull)
	_, isOpen := b.Closer.(*os.File)
	first.WriteString("one\ntail and more")
	data, readErr := io.ReadAll(io.MultiReader(a, strings.NewReader("|"), b))
	same(t, "they hold", string(data), "one\ntail|")
	same(t, "errors", errors.Join(err, readErr, a.Close(), b.Close()), nil)
	same(t, "closed; "+os.DevNull+" is open", fmt.Sprint(errors.Is(a.Close(), os.ErrClosed), isOpen), "true false")
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
		if err != nil || a.Size() < 17+b.Size() || time.Now().After(deadline) {
			t.Fatal(a, b, err)
		}
		size = b.Size()
		same(t, "close", errors.Join(a.Close(), b.Close()), nil)
	}
}

// A file is opened once at a time, and without blocking, as a device could. An error names the file, and leaves nothing
// open. The file's directory is synced, even if the name is a link, unless it cannot be synced, as in /proc.
func TestOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the garbage collector closes forgotten files
	openFiles := func() int {
		open, _ := os.ReadDir("/proc/self/fd") // only Linux has it
		return len(open)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "new")
	Open(os.DevNull) // the first call makes the runtime open files of its own
	before := openFiles()
	for range 2 {
		f, err := Open(name)
		line := []byte("new!")
		same(t, "open, append", errors.Join(err, f.Append(line[:3])), nil)
		same(t, "the caller's array", string(line), "new!")
		for bad, why := range map[string]string{
			name: ": already in use by a server", os.DevNull: " is not a regular file",
			dir: "", filepath.Join(dir, "none", "lines"): "",
		} {
			_, err := Open(bad)
			same(t, fmt.Sprintf("%s is the cause of %v", bad, err), strings.Contains(fmt.Sprint(err), bad+why), true)
			same(t, bad+" is in use", errors.Is(err, ErrInUse), bad == name)
		}
		for _, names := range [][2]string{{name, dir + "/none"}, {dir + "/none", name}} {
			_, _, err := OpenSnapshots(names[0], names[1])
			same(t, "no file", errors.Is(err, os.ErrNotExist), true)
		}
		same(t, "close", f.Close(), nil)
		same(t, "open files", openFiles(), before)
	}
	same(t, "close nil", (*File)(nil).Close(), nil)
	f, err := Open("") // accepts lines, and does not save them
	same(t, "no name", errors.Join(err, do(f, "A"), f.Close()), nil)
	same(t, "read, append two lines", fmt.Sprint(read(f.Scanner(5)), f.Append([]byte("a\nb"))), "|line contains a newline")
	d, f := openTest(t, "")
	info, err := os.ReadFile(fmt.Sprint("/proc/self/fdinfo/", d.Fd()))
	if err == nil {
		flags, _ := strconv.ParseInt(strings.Fields(string(info))[3], 8, 64)
		same(t, "does not block", flags&0o4000, 0o4000)
		same(t, "link", os.Symlink("/proc/self/comm", f.name+".link"), nil)
		same(t, "sync the directory of a link", syncDirectory(f.name+".link"), nil)
	}
	f.name += ".none"
	same(t, "load syncs the directory", errors.Is(f.load(), os.ErrNotExist), runtime.GOOS != "windows")
	d.broken = "stat"
	same(t, "load without stat", f.load(), errDisk)
}

// Open reads the partial line and up to 64 KiB before it, however long the file is. End reads the last complete line
// too, and then up to 64 KiB before that.
func TestEnd(t *testing.T) {
	const chunk = 64 << 10
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk} {
		x := strings.Repeat("x", size)
		for _, complete := range []string{"", x + "\n", "\n" + x + "\n", strings.Repeat("\n", 9*chunk) + x + "\n"} {
			for _, partial := range []string{"", "p", x} {
				what := fmt.Sprintf("%d complete bytes, partial line %.1q of %d bytes", len(complete), partial, len(partial))
				d, f := openTest(t, complete+partial)
				opened, longest := d.bytesRead, len(partial)
				line, got, err := End(f.Reader(), max(size, len(partial)))
				if complete != "" {
					longest = max(size, len(partial))
					same(t, what, line != nil && string(line) == x, true)
				}
				same(t, what, fmt.Sprint(line == nil, string(got) == partial, err), fmt.Sprint(complete == "", true, nil))
				if opened > int64(len(partial)+chunk) || d.bytesRead-opened > int64(2*(size+len(partial)+chunk+1)) {
					t.Errorf("%s: Open read %d bytes, End %d", what, opened, d.bytesRead-opened)
				}
				if _, _, err = End(f.Reader(), longest-1); longest > 0 {
					same(t, what, err, fmt.Sprintf("longer than %d bytes", longest-1))
				}
			}
		}
	}
	_, err := completeLines(strings.NewReader("one"), 4)
	same(t, "a file that was truncated meanwhile", err, "finding the last newline: EOF")
	same(t, "it wraps the error", errors.Is(err, io.EOF), true)
}

// A line may have maxLine bytes. A longer one is an error, and is not read to its end.
func TestLongLines(t *testing.T) {
	for _, maxLine := range []int{0, 5, MaxLine, 3 * MaxLine} {
		x := strings.Repeat("x", maxLine)
		r := iotest.HalfReader(strings.NewReader(x + "\n" + x))
		same(t, "two lines", read(NewScanner(r, maxLine)), x+"\n|")
		for _, more := range []string{"x", "x\nb", strings.Repeat("x", 9*MaxLine)} {
			r := strings.NewReader("\n" + x + more)
			same(t, "a byte more", read(NewScanner(r, maxLine)), fmt.Sprintf("\n|line 2: longer than %d bytes", maxLine))
			same(t, "most is not read", r.Len() >= len(more)-5*MaxLine, true)
		}
	}
	s := NewScanner(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(errDisk)), 5)
	same(t, "an error of the reader", read(s), "a\n|line 2: the disk is broken")
	same(t, "it is wrapped", errors.Is(s.Err(), errDisk), true)
}

// Decode accepts only what Encode returns.
func TestDecode(t *testing.T) {
	type line struct {
		Index, BPM int
		Notes      []string
	}
	const good = `{"Index":-1,"BPM":2147483647,"Notes":["a\u003cb"]}`
	var v line
	same(t, good, Decode([]byte(good), &v), nil)
	same(t, good, v, "{-1 2147483647 [a<b]}")
	same(t, good, string(Encode(v)), good)
	tooLarge := strconv.FormatUint(math.MaxInt+1, 10)
	noInt := fmt.Sprintf("\" is not a whole number that fits in %d bits", strconv.IntSize)
	want := func(line string) string { return "not canonical JSON: want " + strconv.QuoteToASCII(line) }
	for want, lines := range map[string][]string{
		want(`{"Index":1,"BPM":2,"Notes":null}`): {
			`{"Index": 1,"BPM":2,"Notes":null}`, `{"Index":1,"BPM":2,"Notes":null} `, `{"index":1,"BPM":2,"Notes":null}`,
			`{"BPM":2,"Index":1,"Notes":null}`, `{"Index":1,"BPM":2}`, `{"Index":1,"BPM":2,"BPM":2,"Notes":null}`,
			`{"Index":1,"BPM":2,"Notes":null,"More":3}`,
		},
		want(`{"Index":1,"BPM":0,"Notes":["a"]}`):              {`{"Index":1,"BPM":-0,"Notes":["\u0061"]}`},
		want("{\"Index\":1,\"BPM\":0,\"Notes\":[\"\ufffd\"]}"): {"{\"Index\":1,\"BPM\":0,\"Notes\":[\"\xff\"]}"},
		`bad JSON: "BPM": "` + tooLarge + noInt:                {`{"Index":1,"BPM":` + tooLarge + `,"Notes":null}`},
		`bad JSON: "BPM": "7.5` + noInt:                        {`{"Index":1,"BPM":7.5,"Notes":null}`},
		`bad JSON: "`: {
			`{}{}`, `{"Notes":[1]}`, "{\"\u009b\u202e\":1", "\u009b", "{\"note\u017f\":{}}", `{"BPM":{"\u009b":1}}`,
		},
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
