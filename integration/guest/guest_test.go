package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/requester"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/agent"
)

// database boots the VM that all checks share: PostgreSQL with its data and its
// WAL on a logical volume each.
func database(t *testing.T) *lab.Machine {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (Debian: qemu-system-x86)")
	}
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 1<<30); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, lab.VM{
		Name: "guest", Kind: lab.DB, Disks: []lab.Disk{{File: disk, Cache: "writeback"}},
		Layout: lab.Layout{Data: "300M", WAL: "100M"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := m.Run(context.Background(), "ls -lR /run/cleave; tail -n 50 /run/cleave/*/log /run/cleave/*/report /run/cleave/*/work/pg.*/*; lvs -a; dmsetup info -c; ps -ef | tail -n 30; tail -n 20 /run/lab/pg/log")
			t.Logf("%s%s%v", out.Stdout, out.Stderr, err)
		}
		m.Close()
	})
	t.Logf("FIGURE boot: %v (%s)", m.BootTime(), m.Accel())
	return m
}

// sh runs a script in the guest by the lab's own channel, not the agent.
func sh(t *testing.T, m *lab.Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := m.Run(ctx, script)
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out.Stdout, out.Stderr)
	}
	return strings.TrimSpace(out.Stdout)
}

// nothingLeft checks that the guest holds nothing of Cleave.
func nothingLeft(t *testing.T, m *lab.Machine) {
	t.Helper()
	out := sh(t, m, `lvs --noheadings -o lv_name | grep cleave; ls -d /run/cleave* /dev/shm/cleave* 2>/dev/null
		dmsetup info -c --noheadings -o name,suspended | grep Suspended; pgrep -af '[c]leave' ; true`)
	if out != "" {
		t.Errorf("left in the guest:\n%s", out)
	}
	if n, err := m.SQL(t.Context(), "select count(*) from pg_stat_activity where application_name = 'cleave'"); err != nil || n != "0" {
		t.Errorf("sessions of ours in PostgreSQL: %s, %v", n, err)
	}
}

// snapshot runs a step and logs how long it took.
func snapshot(t *testing.T, r requester.Runner, set orchestrator.SetID, o writer.GuestOptions) wire.Report {
	t.Helper()
	began := time.Now()
	report, err := requester.Snapshot(t.Context(), r, "qemu-ga test", set, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Phases {
		t.Logf("%6.2f s  %s", p.At.Sub(report.Started).Seconds(), p.Name)
	}
	for _, w := range report.Warnings {
		t.Log("warning: ", w)
	}
	t.Logf("FIGURE step: %.1f s, of which %.1f s in the guest", time.Since(began).Seconds(), report.Finished.Sub(report.Started).Seconds())
	return report
}

func complete(t *testing.T, r wire.Report, volumes ...string) {
	t.Helper()
	if r.Failed != "" {
		t.Fatalf("failed: %s", r.Failed)
	}
	var names []string
	for _, c := range r.Completions {
		if !c.OK() || c.Group == "" {
			t.Errorf("completion %+v", c)
		}
		names = append(names, c.Volume)
	}
	if !slices.Equal(names, volumes) {
		t.Errorf("volumes %q, want %q", names, volumes)
	}
}

func drop(t *testing.T, r requester.Runner, set orchestrator.SetID) {
	t.Helper()
	began := time.Now()
	if err := requester.Drop(t.Context(), r, set); err != nil {
		t.Error(err)
	}
	t.Logf("FIGURE drop: %.1f s", time.Since(began).Seconds())
}

// until polls the guest until a script succeeds.
func until(t *testing.T, m *lab.Machine, script string) {
	t.Helper()
	sh(t, m, "n=0; until { "+script+"; } >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 400 ] || exit 1; sleep 0.1; done")
}

const (
	checkpointer = "pgrep -f 'postgres: checkpointer'"
	agentStart   = "qemu-ga --daemonize --method=virtio-serial --path=/dev/virtio-ports/org.qemu.guest_agent.0 --pidfile=/run/qemu-ga.pid --statedir=/run"
)

var long = writer.GuestOptions{Limit: 2 * time.Minute}

// parts runs one check after the other on one VM: each leaves the guest as it
// was, and after one that failed none is run.
func parts(t *testing.T, m *lab.Machine) (step func(name string, f func(t *testing.T))) {
	return func(name string, f func(t *testing.T)) {
		if !t.Failed() {
			t.Run(name, func(t *testing.T) {
				f(t)
				nothingLeft(t, m)
			})
		}
	}
}

// What must never break, in one boot.
func TestQuickGuestStep(t *testing.T) {
	m := database(t)
	c := agent.New(m.AgentSocket())
	step := parts(t, m)

	step("probe", func(t *testing.T) {
		p, err := requester.Probe(t.Context(), c)
		if err != nil || p.Cannot != "" || len(p.Volumes) != 2 || len(p.Apps) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if a := p.Apps[0]; a.App != "postgresql" || a.Cannot != "" || !slices.Equal(a.Volumes, []string{"vgdata/pgdata", "vgdata/pgwal"}) {
			t.Errorf("%+v", a)
		}
		if v := p.Volumes[0]; v.Mount != "/srv/pgdata" || v.FS != "ext4" || v.Size != 300<<20 || v.Cannot != "" {
			t.Errorf("%+v", v)
		}
	})

	// Data and WAL on two volumes, while rows are committed: the two snapshots
	// and the label make a cluster that starts and has every row that was
	// committed before the step began.
	step("data and WAL on two volumes", func(t *testing.T) {
		const set = "set-0000000000000001-1"
		sql(t, m, "create table rows (n serial primary key, at timestamptz default clock_timestamp())")
		sh(t, m, `touch /run/load; cat >/run/load.sql <<END
insert into rows default values \watch 0.02
END
setsid psql -q -h /run/postgresql -U postgres -f /run/load.sql >/dev/null 2>&1 & echo $! >/run/load.pid`)
		before := sql(t, m, "select count(*) from rows")
		r := snapshot(t, c, set, long)
		sh(t, m, "kill $(cat /run/load.pid)")
		complete(t, r, "vgdata/pgdata", "vgdata/pgwal")
		if r.Completions[1].Began.Before(r.Completions[0].Ended) {
			t.Error("the WAL is not last")
		}
		if len(r.Writers) != 1 {
			t.Fatalf("writers %+v", r.Writers)
		}
		w := r.Writers[0]
		if w.State != wire.WriterStable || w.Method != "pg_backup_start" || w.Session != set || !strings.HasPrefix(w.Label, "START WAL LOCATION") ||
			r.Completions[0].Session != set || w.Began.After(r.Completions[0].Began) || w.Ended.Before(r.Completions[1].Ended) {
			t.Errorf("writer %+v", w)
		}
		again, err := requester.Snapshot(t.Context(), c, "other", set, long)
		if err != nil || again.Completions[1].Snapshot != r.Completions[1].Snapshot {
			t.Errorf("called again: %+v, %v", again, err)
		}

		sh(t, m, fmt.Sprintf(`set -e
mkdir -p /mnt/d /mnt/w
vgmknodes; mount -t ext4 /dev/%s /mnt/d; mount -t ext4 /dev/%s /mnt/w
rm /mnt/d/main/postmaster.pid; ln -sfn /mnt/w/pg_wal /mnt/d/main/pg_wal
cat >/mnt/d/main/backup_label <<'END'
%sEND
chown postgres /mnt/d/main/backup_label
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
setpriv --reuid=postgres --regid=postgres --init-groups $bin/pg_ctl -w -t 60 -s -D /mnt/d/main -l /tmp/second.log -o "-p 5433 -k /tmp" start || { cat /tmp/second.log; exit 1; }`,
			r.Completions[0].Name, r.Completions[1].Name, w.Label))
		rows := sh(t, m, `psql -h /tmp -p 5433 -U postgres -XAtc "select count(*) >= `+before+`, count(*) > 0, max(n) = count(*) from rows"`)
		if rows != "t|t|t" {
			t.Errorf("recovered: %s (%s rows before)", rows, before)
		}
		sh(t, m, `bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
setpriv --reuid=postgres --regid=postgres --init-groups $bin/pg_ctl -w -s -m immediate -D /mnt/d/main stop; umount /mnt/d /mnt/w; rm /tmp/second.log`)
		drop(t, c, set)
	})

	step("a session that hangs is undone by the guest", func(t *testing.T) {
		const set = "set-0000000000000002-1"
		sh(t, m, "kill -STOP $("+checkpointer+")")
		defer sh(t, m, "kill -CONT $("+checkpointer+")")
		r := snapshot(t, c, set, writer.GuestOptions{Limit: 20 * time.Second})
		if !strings.Contains(r.Failed, "time limit") || !strings.Contains(r.Failed, "PostgreSQL") || len(r.Completions) != 0 {
			t.Errorf("%+v", r)
		}
		if out := sh(t, m, "lvs --noheadings -o lv_name | grep cleave; true"); out != "" {
			t.Errorf("still there: %s", out)
		}
		if n := sql(t, m, "select count(*) from pg_stat_activity where application_name = 'cleave'"); n != "0" {
			t.Errorf("%s sessions of ours", n)
		}
		drop(t, c, set)
	})
}

func sql(t *testing.T, m *lab.Machine, statement string) string {
	t.Helper()
	out, err := m.SQL(t.Context(), statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return strings.TrimSpace(out)
}
