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
	"sync"
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
	full       int64  // no byte can be written from this offset on, or 0 if all can
	broken     string // which of "stat", "sync" and "truncate" fail
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

// fails reports whether call fails.
func (d *testDisk) fails(call string) bool { return strings.Contains(d.broken, call) }

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.bytesRead += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	if d.full == 0 || at+int64(len(p)) <= d.full {
		return d.File.WriteAt(p, at)
	}
	n, _ := d.File.WriteAt(p[:max(0, d.full-at)], at)
	return n, errDisk
}

func (d *testDisk) Truncate(size int64) error {
	if d.fails("truncate") {
		return errDisk
	}
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	d.duringSync()
	if d.fails("sync") {
		return errDisk
	}
	d.synced = d.content()
	return nil
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if d.fails("stat") {
		return nil, errDisk
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

// state describes the file of d and f.
func state(d *testDisk, f *File) string {
	_, partial, err := f.End(5)
	return fmt.Sprintf("%q, synced %q, read %q, partial %q %v", d.content(), d.synced, read(f.Scanner(5)), partial, err)
}

// synced is the state of a file that is completely synced.
func synced(complete, partial string) string {
	return fmt.Sprintf("%q, synced %[1]q, read %q, partial %q <nil>", complete+partial, complete+"|", partial)
}

// do takes steps: A appends the line "new", C completes the partial line, D drops it.
func do(f *File, steps string) (err error) {
	app := func() error { return f.Append([]byte("new")) }
	does := map[rune]func() error{'A': app, 'C': f.CompletePartial, 'D': f.DropPartial}
	for _, step := range steps {
		err = errors.Join(err, does[step]())
	}
	return err
}

// A crash can truncate a file at any byte. The owner decides what becomes of the partial line.
func TestCrashAnywhere(t *testing.T) {
	const content = "on\r\n\nthree\nfour\n"
	for size := range len(content) + 1 {
		complete := content[:strings.LastIndex(content[:size], "\n")+1]
		partial, completed := content[len(complete):size], content[:size]
		if partial != "" {
			completed += "\n"
		}
		for steps, want := range map[string]string{
			"A": complete + "new\n", "C": completed, "D": complete,
			"CA": completed + "new\n", "DCA": complete + "new\n", "ACDA": complete + "new\nnew\n",
		} {
			what := fmt.Sprintf("%s at %d bytes", steps, size)
			d, f := openTest(t, content[:size])
			same(t, what, state(d, f), synced(complete, partial))
			same(t, what, do(f, steps), nil)
			same(t, what, state(d, f), synced(want, ""))
		}
	}
}

// A step on a broken disk returns the error and leaves the lines as they were. Once the disk works again, the next step
// is not affected.
func TestBrokenDisk(t *testing.T) {
	steps := []struct{ partial, step, next, want string }{
		{partial: "", step: "A", next: "A", want: "one\nnew\n"},
		{partial: "", step: "A", next: "CD", want: "one\n"},
		{partial: "new", step: "C", next: "C", want: "one\nnew\n"},
		{partial: "new", step: "D", next: "A", want: "one\nnew\n"},
	}
	for _, broken := range []string{"", "sync", "truncate", "stat", "sync truncate", "sync stat", "truncate stat"} {
		for full := int64(4); full <= 8; full++ {
			for _, c := range steps {
				d, f := openTest(t, "one\n"+c.partial)
				d.full, d.broken = full, broken
				what := fmt.Sprintf("%s with partial line %q, full at %d, broken %s", c.step, c.partial, full, broken)
				truncates, changes, remains := !d.fails("truncate"), full == 8, c.partial
				if c.step == "D" {
					changes = truncates
				}
				if c.step == "D" && truncates {
					remains = ""
				}
				works := changes && !d.fails("stat") && !d.fails("sync")
				same(t, what, errors.Is(do(f, c.step), errDisk), !works)
				if works {
					continue
				}
				_, partial, err := f.End(5)
				same(t, what, fmt.Sprint(read(f.Scanner(5)), string(partial), err), "one\n|"+remains+"<nil>")
				if truncates {
					same(t, what, d.content(), "one\n"+remains)
				}
				d.full, d.broken = 0, ""
				same(t, what+", then "+c.next, do(f, c.next), nil)
				same(t, what+", then "+c.next, state(d, f), synced(c.want, ""))
			}
		}
	}
}

// After a failure, a partial line can still be completed, and changes by other programs are still noticed.
func TestAfterFailure(t *testing.T) {
	d, f := openTest(t, "one\ntail")
	d.broken = "truncate"
	same(t, "drop, append, complete", fmt.Sprint(do(f, "D"), do(f, "A"), do(f, "C")), fmt.Sprint(errDisk, errDisk, nil))
	same(t, "the file", state(d, f), synced("one\ntail\n", ""))
	skipOnWindows(t)
	d.full, d.broken = 12, "truncate stat" // so a part of the line remains, and its size is unknown
	do(f, "A")
	d.broken = ""
	os.Truncate(d.Name(), 6)
	same(t, "append to a file that was truncated", errors.Is(do(f, "A"), ErrChanged), true)
	same(t, "the truncated file", d.content(), "one\nta")
	d, f = openTest(t, "")
	d.duringSync = func() { edit(f.name, "two\n", 2) }
	for range 2 {
		same(t, "append a line, which is edited during the sync", errors.Is(do(f, "A"), ErrChanged), true)
		same(t, "the edited file", d.content(), "two\n")
	}
	f.name += "/lines"
	same(t, "append to a file that cannot be looked at", do(f, "A") != nil, true)
}

// skipOnWindows skips a test in which other programs change a file that is open.
func skipOnWindows(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can change, move or delete a file that is open here")
	}
}

// While a file is not as we left it, no step writes to it.
func TestErrChanged(t *testing.T) {
	skipOnWindows(t)
	move := func(name string) error { return os.Rename(name, name+".old") }
	for what, change := range map[string]func(name string) error{
		"deleted or moved":         move,
		"replaced by another file": func(name string) error { return errors.Join(move(name), edit(name, "8 bytes\n", 2)) },
		"its time has changed":     func(name string) error { return edit(name, "one\nmine", 2) },
		"its size is now 12 bytes": func(name string) error { return edit(name, "one\ntailmine", 2) },
		"its size is now 2 bytes":  func(name string) error { return os.Truncate(name, 2) },
	} {
		for _, c := range []struct {
			before, step string
			during       bool   // the sync
			undone       string // what the file holds if it was moved back and the step repeated
		}{
			{step: "C", undone: "one\ntail\n"}, {step: "C", during: true, undone: "one\ntail\n"},
			{step: "D", undone: "one\n"}, {step: "D", during: true, undone: "one\n"}, {step: "A", undone: "one\nnew\n"},
			{before: "A", step: "A", undone: "one\nnew\nnew\n"}, {before: "D", step: "A", during: true, undone: "one\nnew\n"},
		} {
			d, f := openTest(t, "one\ntail")
			same(t, what, do(f, c.before), nil)
			content := ""
			d.duringSync = func() {
				same(t, what, change(f.name), nil)
				content, d.duringSync = d.content(), func() {}
			}
			if !c.during {
				d.duringSync() // in both cases, the file had 8 bytes
			}
			err := do(f, c.step)
			if same(t, what, errors.Is(err, ErrChanged), true); !c.during {
				same(t, what, err, f.name+": changed by another program: "+what)
			}
			same(t, what, d.content(), content)
			if os.Rename(f.name+".old", f.name) == nil {
				same(t, c.step+" after it was moved back", do(f, c.step), nil)
				same(t, what, state(d, f), synced(c.undone, ""))
			}
		}
	}
}

// A file whose time alone has changed, even during a sync, is still ours if its content is known. It is not if it was
// edited.
func TestTouched(t *testing.T) {
	skipOnWindows(t)
	for _, steps := range []string{"A", "CA", "DA", "ACDA"} {
		d, f := openTest(t, "one\ntail")
		read(f.Scanner(9))
		touch := func() { os.Chtimes(f.name, time.Time{}, time.Unix(5, 0)) }
		same(t, "before", do(f, steps), nil)
		touch()
		d.duringSync = touch
		same(t, "touched", do(f, "AA"), nil)
		d.duringSync, d.bytesRead = func() {}, 0
		same(t, "append, and bytes read", fmt.Sprint(do(f, "A"), d.bytesRead), "<nil> 0")
		same(t, "edit", edit(f.name, strings.Replace(d.content(), "new", "now", 1), 6), nil)
		same(t, "append", do(f, "A"), f.name+": changed by another program: edited")
		d, f = openTest(t, "one\n")
		d.duringSync = func() { touch() }
		same(t, "unknown content", do(f, "A"), f.name+": changed by another program: its time has changed")
	}
}

// Reopen opens the file that has the name now, or creates it. If it fails, nothing is written until it succeeds.
func TestReopen(t *testing.T) {
	skipOnWindows(t)
	name := filepath.Join(t.TempDir(), "lines")
	f, err := Open(name)
	err = errors.Join(err, do(f, "A"), os.Rename(name, name+".old"), os.Mkdir(name, 0o755))
	same(t, "append and move", err, nil)
	for range 2 {
		same(t, "append to a moved file", errors.Is(do(f, "A"), ErrChanged), true)
		_, err := f.Reopen()
		same(t, "a directory cannot be opened", err != nil, true)
	}
	same(t, "move back", errors.Join(os.Remove(name), os.Rename(name+".old", name)), nil)
	same(t, "append before Reopen", do(f, "A"), name+": changed by another program: closed")
	for _, want := range []string{"new\nnew\n", "new\n"} { // the file that was moved back, and a new one
		f, err = f.Reopen()
		same(t, "reopen", errors.Join(err, do(f, "A")), nil)
		_, err := Open(name)
		same(t, "it is locked", errors.Is(err, ErrInUse), true)
		data, _ := os.ReadFile(name)
		same(t, "it holds", string(data), want)
		os.Remove(name)
	}
	f.Close()
}

// A snapshot may be of a file in use. It ends where the file ended when it was opened.
func TestOpenSnapshots(t *testing.T) {
	d, f := openTest(t, "one\ntail")
	a, b, err := OpenSnapshots(f.name, os.DevNull)
	_, isOpen := b.Closer.(*os.File)
	partialAndOpen := fmt.Sprintf("%s|%s|%s %v", a.Partial(9), a.Partial(2), b.Partial(9), isOpen)
	same(t, "partial lines, and whether "+os.DevNull+" is open", partialAndOpen, "tail|ta| false")
	_, writeErr := d.File.WriteString("one\ntail and more")
	same(t, "open", errors.Join(err, writeErr), nil)
	data, err := io.ReadAll(io.MultiReader(a, strings.NewReader("|"), b))
	same(t, "they hold", string(data), "one\ntail|")
	same(t, "close", errors.Join(err, a.Close(), b.Close()), nil)
	same(t, "close twice", errors.Is(a.Close(), os.ErrClosed), true)
	for _, missing := range [][2]string{{f.name + ".none", f.name}, {f.name, f.name + ".none"}} {
		_, _, err := OpenSnapshots(missing[0], missing[1])
		same(t, "no file", errors.Is(err, os.ErrNotExist), true)
	}
}

// While each byte is written to one file and then to another, the snapshot of the first is never behind.
func TestSnapshotsWhileWriting(t *testing.T) {
	t.Chdir(t.TempDir())
	first, err1 := os.Create("first")
	second, err2 := os.Create("second")
	same(t, "create", errors.Join(err1, err2), nil)
	var writing sync.WaitGroup
	writing.Go(func() {
		for range 500 {
			first.WriteString("x")
			second.WriteString("x")
			time.Sleep(50 * time.Microsecond) // about as long as it takes to open both files
		}
		first.Close()
		second.Close()
	})
	deadline := time.Now().Add(10 * time.Second)
	for size := int64(0); size < 500; {
		a, b, err := OpenSnapshots("first", "second")
		if err != nil || a.Size() < b.Size() || time.Now().After(deadline) {
			t.Fatal(a, b, err)
		}
		size = b.Size()
		same(t, "close", errors.Join(a.Close(), b.Close()), nil)
	}
	writing.Wait()
}

// A file is opened once at a time. An error names the file, and leaves nothing open.
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
		OpenSnapshots(name, dir+"/none")
		OpenSnapshots(dir+"/none", name)
		same(t, "close", f.Close(), nil)
		same(t, "open files", openFiles(), before)
	}
	d, f := openTest(t, "")
	d.broken = "stat"
	same(t, "load without stat", f.load(), errDisk)
	same(t, "close nil", (*File)(nil).Close(), nil)
	f, err := Open("") // accepts lines, and does not save them
	same(t, "no name", errors.Join(err, do(f, "ACD"), f.Close()), nil)
	same(t, "read, append two lines", fmt.Sprint(read(f.Scanner(5)), f.Append([]byte("a\nb"))), "|line contains a newline")
}

// Open reads the partial line and up to 64 KiB before it, however long the file is. End reads the last complete line
// too, and then up to 64 KiB before that.
func TestEnd(t *testing.T) {
	const chunk = 64 << 10
	for _, size := range []int{0, 1, 100, chunk - 1, chunk, chunk + 1, 3 * chunk} {
		line := strings.Repeat("x", size)
		for _, before := range []string{"", "\n", "one\n", strings.Repeat("\n", 9*chunk)} {
			for _, partial := range []string{"", "p", strings.Repeat("p", size)} {
				d, f := openTest(t, before+line+"\n"+partial)
				what := fmt.Sprintf("%d + %d + %d bytes", len(before), size, len(partial))
				same(t, what, fmt.Sprint(f.Size()-f.PartialSize(), f.PartialSize()), fmt.Sprint(len(before)+size+1, len(partial)))
				opened := d.bytesRead
				last, got, err := f.End(size + 1)
				same(t, what, fmt.Sprint(string(last) == line, string(got) == partial, err), "true true <nil>")
				if opened > int64(len(partial)+chunk) || d.bytesRead-opened > int64(size+len(partial)+size+chunk+2) {
					t.Errorf("%s: Open read %d bytes, End %d", what, opened, d.bytesRead-opened)
				}
				_, _, err = f.End(size - 1)
				same(t, what, err, fmt.Sprintf("longer than %d bytes", size-1))
			}
		}
		_, f := openTest(t, line)
		last, got, err := f.End(size)
		same(t, "no complete line", fmt.Sprint(last == nil, string(got) == line, err), "true true <nil>")
		if _, _, err = f.End(size - 1); size > 0 {
			same(t, "a longer partial line", err, fmt.Sprintf("longer than %d bytes", size-1))
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
