//go:build lab

package guest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/orchestrator/guest/requester"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/agent"
)

// What else may happen to a step, to its agent and to its guest, in one boot.
func TestGuestStep(t *testing.T) {
	m := database(t)
	c := agent.New(m.AgentSocket())
	step := parts(t, m)
	sql(t, m, "create table rows (n serial primary key, at timestamptz default clock_timestamp())")

	step("an agent that dies in the middle loses nothing", func(t *testing.T) {
		const set = "set-0000000000000003-1"
		killed := make(chan error, 1)
		go func() {
			_, err := m.Run(context.Background(), "n=0; until [ -s /run/cleave/"+set+"/watch.pid ]; do n=$((n+1)); [ $n -lt 400 ] || exit 1; sleep 0.1; done; kill -9 $(cat /run/qemu-ga.pid); sleep 1; "+agentStart)
			killed <- err
		}()
		r := snapshot(t, c, set, long)
		if err := <-killed; err != nil {
			t.Fatal(err)
		}
		complete(t, r, "vgdata/pgdata", "vgdata/pgwal")

		// The day that snapshots are kept for is over: the watchdog's two naps are cut short.
		for range 2 {
			sh(t, m, "pkill -P $(cat /run/cleave/"+set+"/watch.pid) sleep")
			until(t, m, "pgrep -P $(cat /run/cleave/"+set+"/watch.pid) sleep || [ ! -e /run/cleave/"+set+" ]")
		}
		until(t, m, "[ ! -e /run/cleave/"+set+" ]")
		if _, err := requester.Snapshot(t.Context(), notLaunching{c}, "x", set, long); err == nil || !strings.Contains(err.Error(), "knows nothing") {
			t.Errorf("a report of a set that is gone: %v", err)
		}
	})

	step("a step that is killed is undone by the watchdog", func(t *testing.T) {
		const set = "set-0000000000000004-1"
		killed := make(chan error, 1)
		go func() {
			_, err := m.Run(context.Background(), "n=0; until [ -s /run/cleave/"+set+"/work/new ]; do n=$((n+1)); [ $n -lt 400 ] || exit 1; sleep 0.1; done; kill -s KILL -- -$(cat /run/cleave/"+set+"/step.pid)")
			killed <- err
		}()
		r := snapshot(t, c, set, writer.GuestOptions{Limit: 60 * time.Second})
		if err := <-killed; err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(r.Failed, "time limit") {
			t.Errorf("%+v", r)
		}
		drop(t, c, set)
	})

	// As an lvcreate that was killed between suspend and resume leaves it.
	step("suspended devices are resumed", func(t *testing.T) {
		const set = "set-0000000000000005-1"
		sh(t, m, `set -e; mkdir -p /run/cleave/`+set+`/work; echo 'vgdata/pgwal|vgdata-pgwal' >/run/cleave/`+set+`/touched
lvcreate -q -y -s -n cleave-`+set+`-pgwal --addtag cleave.`+set+` -L 8M vgdata/pgwal
dmsetup suspend --noudevsync vgdata-pgwal`)
		drop(t, c, set)
		sql(t, m, "insert into rows default values")
	})

	step("an unknown volume is refused", func(t *testing.T) {
		const set = "set-0000000000000006-1"
		r := snapshot(t, c, set, writer.GuestOptions{Limit: time.Minute, Volumes: []string{"AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"}})
		if !strings.Contains(r.Failed, "AAAAAA") {
			t.Errorf("%+v", r)
		}
		drop(t, c, set)
	})

	step("all on one volume", func(t *testing.T) {
		const set = "set-0000000000000007-1"
		sh(t, m, `set -e; pg="setpriv --reuid=postgres --regid=postgres --init-groups $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/pg_ctl -w -s -D /srv/pgdata/main -l /run/lab/pg/log"
$pg -m fast stop; rm /srv/pgdata/main/pg_wal; mv /srv/pgwal/pg_wal /srv/pgdata/main/pg_wal; $pg start`)
		p, err := requester.Probe(t.Context(), c)
		if err != nil || len(p.Apps) != 1 || !slices.Equal(p.Apps[0].Volumes, []string{"vgdata/pgdata"}) {
			t.Fatalf("%+v, %v", p, err)
		}
		r := snapshot(t, c, set, writer.GuestOptions{Limit: time.Minute, Volumes: []string{p.Volumes[0].UUID}})
		complete(t, r, "vgdata/pgdata")
		if w := r.Writers[0]; w.State != wire.WriterStable || w.Method != "checkpoint" || w.Session != "" || w.Label != "" {
			t.Errorf("%+v", w)
		}
		drop(t, c, set)
	})

	step("a database that does not run, and a group without room", func(t *testing.T) {
		const set = "set-0000000000000008-1"
		sh(t, m, `kill -INT $(head -n 1 /srv/pgdata/main/postmaster.pid)`)
		until(t, m, "! pgrep -x postgres")
		r := snapshot(t, c, set, long)
		complete(t, r, "vgdata/pgdata", "vgdata/pgwal")
		if len(r.Writers) != 1 || r.Writers[0].State != wire.WriterNotRunning {
			t.Errorf("%+v", r.Writers)
		}
		drop(t, c, set)
		sh(t, m, "lvcreate -q -y -Wn -n filler -l 100%FREE vgdata")
		r = snapshot(t, c, set, long)
		if !strings.Contains(r.Failed, "free extents") {
			t.Errorf("%+v", r)
		}
		drop(t, c, set)
		sh(t, m, `lvremove -q -y vgdata/filler
setpriv --reuid=postgres --regid=postgres --init-groups $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/pg_ctl -w -s -D /srv/pgdata/main -l /run/lab/pg/log start`)
	})
}

// notLaunching leaves out what would start a step.
type notLaunching struct{ r requester.Runner }

func (n notLaunching) Run(ctx context.Context, argv []string, stdin []byte) (requester.Result, error) {
	if slices.Contains(argv, "launch") {
		return requester.Result{}, nil
	}
	return n.r.Run(ctx, argv, stdin)
}
