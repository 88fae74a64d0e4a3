package program_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/program"
)

// script is a program in a shell whose describe is in order; body answers the other
// calls, with the call's name in $1 and the request's id in $id.
func script(t *testing.T, serve, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "provider")
	text := `#!/bin/sh
describe() { printf '{"id": %s, "result": {"provider": "test", "serve": ` + serve + `, "calls": ["describe", "resolve", "prepare", "split", "lookup", "delete", "open"]}}\n' "$id"; }
next() { IFS= read -r request || exit 0; id=$(printf '%s' "$request" | sed 's/.*"id":\("[0-9]*"\).*/\1/'); }
if [ "$1" != serve ]; then next; fi
if [ "$1" = describe ]; then describe; exit; fi
` + body
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a program may do wrong, and what becomes of a call that changes the array
// and of one that doesn't.
func TestBadPrograms(t *testing.T) {
	for _, row := range []struct {
		name, body string
		want       driver.Kind // of a split
		text       string
	}{
		{"silent", `exit 0`, driver.OutcomeUnknown, "gave no reply"},
		{"fails", `echo "disk on fire" >&2; exit 3`, driver.OutcomeUnknown, "disk on fire"},
		{"no JSON", `echo hello`, driver.OutcomeUnknown, "reply"},
		{"other id", `echo '{"id": "x", "result": []}'`, driver.OutcomeUnknown, "id"},
		{"neither", `printf '{"id": %s}\n' "$id"`, driver.OutcomeUnknown, "result or an error"},
		{"both", `printf '{"id": %s, "result": [], "error": {"kind": "busy"}}\n' "$id"`, driver.OutcomeUnknown, "result or an error"},
		{"two replies", `printf '{"id": %s, "result": []}\n{"id": %s, "result": []}\n' "$id" "$id"`, driver.OutcomeUnknown, "more than its reply"},
		{"wrong type", `printf '{"id": %s, "result": 7}\n' "$id"`, driver.OutcomeUnknown, "result of split"},
		{"no snapshot", `printf '{"id": %s, "result": []}\n' "$id"`, driver.OutcomeUnknown, "0 snapshots"},
		{"other tag", `printf '{"id": %s, "result": [{"id": "a", "tag": "z", "volume": "v", "size": 1, "method": "array-snapshot"}]}\n' "$id"`, driver.OutcomeUnknown, `tag "z"`},
		{"no method", `printf '{"id": %s, "result": [{"id": "a", "tag": "t", "volume": "v", "size": 1}]}\n' "$id"`, driver.OutcomeUnknown, "method"},
		{"no size", `printf '{"id": %s, "result": [{"id": "a", "tag": "t", "volume": "v", "method": "array-snapshot"}]}\n' "$id"`, driver.OutcomeUnknown, "0 bytes"},
		{"control characters", `printf '{"id": %s, "result": [{"id": "a\\u0007", "tag": "t", "volume": "v", "size": 1, "method": "array-snapshot"}]}\n' "$id"`, driver.OutcomeUnknown, "printable"},
		{"endless", `yes`, driver.OutcomeUnknown, "longer than"},
		{"one long line", `printf '{"id": %s, "result": [' "$id"; yes '"x",' | head -c 40000000 | tr -d '\n'`, driver.OutcomeUnknown, "longer than"},
		{"hangs", `sleep 1000`, driver.OutcomeUnknown, "killed"},
		{"a long reason of many lines", `printf '{"id": %s, "error": {"kind": "no-space", "message": "pool\\nfull %s"}}\n' "$id" "$(head -c 100000 /dev/zero | tr '\0' x)"`, driver.NoSpace, "pool full xxx"},
		{"unknown kind", `printf '{"id": %s, "error": {"kind": "tired", "message": ""}}\n' "$id"`, driver.Unknown, "no reason"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := open(t, program.Options{Command: []string{script(t, "false", row.body)}, Limit: 5 * time.Second})
			_, err := p.Split(t.Context(), "t", "v")
			if err == nil || p.Kind(err) != row.want || !strings.Contains(err.Error(), row.text) || len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n") {
				t.Errorf("Split: kind %v, %v; want kind %v and %q", p.Kind(err), err, row.want, row.text)
			}
			if _, err := p.Lookup(t.Context(), "t"); row.want == driver.OutcomeUnknown && row.name != "no snapshot" && (err == nil || p.Kind(err) != driver.Unreachable) {
				t.Errorf("Lookup: kind %v, %v; want %v: it changes nothing", p.Kind(err), err, driver.Unreachable)
			}
		})
	}
}

// What a program has started and let go of holds nobody up, though it has the
// program's output open.
func TestLeftBehind(t *testing.T) {
	path := script(t, "false", `setsid sleep 1000 & echo $! >"$0.left"
printf '{"id": %s, "result": [{"id": "t@v", "tag": "t", "volume": "v", "size": 512, "method": "array-snapshot"}]}\n' "$id"`)
	t.Cleanup(func() {
		b, err := os.ReadFile(path + ".left")
		pid, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
		if err := errors.Join(err, convErr); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Errorf("it has left its group, and was killed all the same: %v", err)
		}
	})
	p := open(t, program.Options{Command: []string{path}})
	if _, err := p.Split(t.Context(), "t", "v"); err != nil {
		t.Error(err)
	}
}

func TestNoProgram(t *testing.T) {
	for name, o := range map[string]program.Options{
		"none":         {},
		"relative":     {Command: []string{"provider"}},
		"not there":    {Command: []string{"/nowhere/at/all"}},
		"lacks a call": {Command: []string{"/bin/sh", "-c", `echo '{"id": "1", "result": {"provider": "x", "calls": ["describe"]}}'`}},
		"no name":      {Command: []string{"/bin/sh", "-c", `echo '{"id": "1", "result": {"calls": ["describe"]}}'`}},
	} {
		if p, err := program.Open(t.Context(), o); err == nil {
			p.Close()
			t.Errorf("%s: it opened", name)
		}
	}
}

// A program gets what was named of the environment, and nothing of ours.
func TestEnvironment(t *testing.T) {
	t.Setenv("CLEAVE_TEST_SECRET", "hush")
	p := open(t, program.Options{
		Command:     []string{script(t, "false", `printf '{"id": %s, "error": {"kind": "busy", "message": "%s/%s"}}\n' "$id" "$NAMED" "$CLEAVE_TEST_SECRET"`)},
		Environment: []string{"NAMED=yes"},
	})
	if _, err := p.Lookup(t.Context(), "t"); err == nil || err.Error() != "yes/" {
		t.Errorf("%v, want yes/", err)
	}
}

// serving answers lookups with an empty list and everything else not at all.
const serving = `while :; do next; case $request in
*'"call":"describe"'*) describe ;;
*'"call":"lookup"'*) printf '{"id": %s, "result": []}\n' "$id" ;;
*'"call":"delete"'*) exit 1 ;;
esac; done`

// One process answers many calls at once; a call that it doesn't answer kills it,
// and those that wait for it fail with it; the next one starts another.
func TestServe(t *testing.T) {
	p := open(t, program.Options{Command: []string{script(t, "true", serving)}})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if ss, err := p.Lookup(t.Context(), "t"); err != nil || len(ss) != 0 {
				t.Errorf("Lookup: %v, %v", ss, err)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Split(ctx, "t", "v"); p.Kind(err) != driver.OutcomeUnknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Split that nobody answers: kind %v, %v", p.Kind(err), err)
	}
	again(t, p)
	if err := p.Delete(t.Context(), "s"); p.Kind(err) != driver.OutcomeUnknown {
		t.Errorf("Delete during which the program ended: kind %v, %v", p.Kind(err), err)
	}
	again(t, p)
	p.Close()
	if _, err := p.Lookup(t.Context(), "t"); p.Kind(err) != driver.Unreachable {
		t.Errorf("after Close: kind %v, %v", p.Kind(err), err)
	}
}

// again asks until the program, which has just ended, has been started anew.
func again(t *testing.T, p *program.Driver) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := p.Lookup(t.Context(), "t")
		if err == nil {
			return
		}
		if p.Kind(err) != driver.Unreachable || time.Now().After(end) {
			t.Fatalf("it is not started again: kind %v, %v", p.Kind(err), err)
		}
	}
}

// A serving program that says what nobody asked for is not trusted any further.
func TestServeNonsense(t *testing.T) {
	for _, say := range []string{`echo hello`, `echo '{"id": "77", "result": []}'`, `printf '{"id": %s}\n' "$id"`, `yes x | tr -d '\n'`} {
		t.Run(say, func(t *testing.T) {
			t.Parallel()
			p := open(t, program.Options{Command: []string{script(t, "true", `next; `+say+`; sleep 1000`)}, Limit: 20 * time.Second})
			if _, err := p.Split(t.Context(), "t", "v"); p.Kind(err) != driver.OutcomeUnknown || strings.Contains(err.Error(), "killed") {
				t.Errorf("kind %v, %v", p.Kind(err), err)
			}
		})
	}
}
