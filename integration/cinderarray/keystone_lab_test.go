//go:build lab

package cinderarray

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/driver"
)

const (
	memberWord = "correct horse battery"
	credSecret = "staple of a credential"
	// tokens is how long those of the lab's Keystone are good for: several end
	// within a run of the suite.
	tokens = 5 * time.Second
)

// cloud writes a clouds.yaml with an entry "lab", and a secure.yaml beside it, and
// gives the options that name them.
func cloud(t *testing.T, entry, secure string) cinder.Options {
	t.Helper()
	dir := t.TempDir()
	o := cinder.Options{Cloud: "lab", CloudsFile: filepath.Join(dir, "clouds.yaml"), GroupType: cinderlab.GroupType, Limit: time.Minute}
	for name, text := range map[string]string{"clouds.yaml": entry, "secure.yaml": secure} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("clouds:\n  lab:\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// byPassword is an entry of clouds.yaml.
func byPassword(k *cinderlab.Keystone, user, word string) string {
	e := fmt.Sprintf("    region_name: %s\n    auth:\n      auth_url: %s\n      username: %s\n      project_name: lab\n      user_domain_name: Default\n      project_domain_name: Default\n",
		cinderlab.Region, k.URL, user)
	if word != "" {
		e += "      password: " + word + "\n"
	}
	return e
}

// byCredential is one with an application credential.
func byCredential(k *cinderlab.Keystone, id string) string {
	return fmt.Sprintf("    region_name: %s\n    auth_type: v3applicationcredential\n    auth:\n      auth_url: %s\n      application_credential_id: %s\n      application_credential_secret: %s\n",
		cinderlab.Region, k.URL, id, credSecret)
}

// TestKeystone has Cinder check the tokens of a real Keystone, which end in the
// middle of everything.
func TestKeystone(t *testing.T) {
	k := cinderlab.StartKeystone(t, tokens)
	c := cinderlab.StartWith(t, k, map[string]string{"plain": cinderlab.Plain, "consistent": cinderlab.Consistent})
	member, _ := k.User("member", memberWord, "lab", "member")
	k.User("looker", memberWord, "lab", "reader")
	k.User("stranger", memberWord, "elsewhere", "member")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Log())
		}
	})

	plain := driver.VolumeID(c.Volume("plain"))
	consistent := []driver.VolumeID{driver.VolumeID(c.Volume("consistent")), driver.VolumeID(c.Volume("consistent"))}
	id, end := k.Credential(member, "member", memberWord, "lab", credSecret)
	credential := open(t, cloud(t, byCredential(k, id), ""))
	t.Run("Lives", func(t *testing.T) {
		t.Run("Member", func(t *testing.T) {
			t.Parallel()
			life(t, open(t, cloud(t, byPassword(k, "member", ""), "    auth:\n      password: "+memberWord+"\n")), "member", plain)
		})
		t.Run("Administrator", func(t *testing.T) {
			t.Parallel()
			life(t, open(t, cloud(t, byPassword(k, "lab-admin", cinderlab.ServicePassword), "")), "administrator", consistent...)
		})
		t.Run("Credential", func(t *testing.T) {
			t.Parallel()
			life(t, credential, "credential", plain)
		})
	})
	t.Run("MemberSeesNoGroups", func(t *testing.T) {
		_, err := credential.SplitGroup(t.Context(), "group", consistent)
		refusedAs(t, credential, err, driver.NotSupported, "consistent")
	})
	t.Run("CredentialTakenAway", func(t *testing.T) {
		end()
		time.Sleep(tokens + time.Second) // what it had may still be good
		_, err := credential.Lookup(t.Context(), "credential")
		refusedAs(t, credential, err, driver.NotPermitted, "Keystone")
	})
	t.Run("Reader", func(t *testing.T) {
		d := open(t, cloud(t, byPassword(k, "looker", memberWord), ""))
		if _, err := d.Resolve(t.Context(), driver.Disk{Serial: string(plain)}); err != nil {
			t.Error(err)
		}
		_, err := d.Split(t.Context(), "reader", plain)
		refusedAs(t, d, err, driver.NotPermitted, "403")
		found, err := d.Check(t.Context(), []driver.VolumeID{plain})
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for _, f := range found {
			t.Logf("%+v", f)
			if f.Result == driver.Failed && strings.Contains(f.Detail, "volume:create_volume_metadata") {
				refused++
			}
		}
		if refused != 1 {
			t.Errorf("doctor says %d times that it may not mark volumes", refused)
		}
	})
	t.Run("WrongPassword", func(t *testing.T) {
		d := open(t, cloud(t, byPassword(k, "member", "wrong battery"), ""))
		_, err := d.Resolve(t.Context(), driver.Disk{Serial: string(plain)})
		refusedAs(t, d, err, driver.NotPermitted, "Keystone answers 401")
	})
	t.Run("OtherProject", func(t *testing.T) {
		d := open(t, cloud(t, byPassword(k, "stranger", memberWord), ""))
		_, err := d.Resolve(t.Context(), driver.Disk{Serial: string(plain)})
		refusedAs(t, d, err, driver.NotPermitted, "Keystone answers 401")
	})
	var left struct{ Snapshots, Volumes, Groups []struct{ Name string } }
	for _, of := range []string{"snapshots", "volumes", "groups"} {
		c.Do(http.MethodGet, of, nil, &left)
	}
	for _, x := range append(append(left.Snapshots, left.Volumes...), left.Groups...) {
		if strings.HasPrefix(x.Name, "cleave-") {
			t.Errorf("%s is left behind", x.Name)
		}
	}
}

func open(t *testing.T, o cinder.Options) *cinder.Driver {
	t.Helper()
	d, err := cinder.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// life is that of a split, each step of which begins with a token that has ended.
func life(t *testing.T, d *cinder.Driver, tag driver.Tag, vs ...driver.VolumeID) {
	t.Helper()
	step := func(what string, do func(ctx context.Context) error) {
		t.Helper()
		if err := do(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(tokens + time.Second)
	}
	var made []driver.Snapshot
	step("preparing", func(ctx context.Context) error {
		return d.Prepare(ctx, vs, driver.PrepareOptions{Tag: tag})
	})
	step("splitting", func(ctx context.Context) (err error) {
		if len(vs) > 1 {
			made, err = d.SplitGroup(ctx, tag, vs)
			return err
		}
		s, err := d.Split(ctx, tag, vs[0])
		made = []driver.Snapshot{s}
		return err
	})
	step("looking up", func(ctx context.Context) error {
		found, err := d.Lookup(ctx, tag)
		if err == nil && len(found) != len(vs) {
			err = fmt.Errorf("%v, want %v", found, made)
		}
		return err
	})
	step("exposing", func(ctx context.Context) error {
		_, err := d.Expose(ctx, made[0].ID, driver.ExposeOptions{Initiators: []string{"iqn.1993-08.org.debian:01:backup"}, Writable: true})
		return err
	})
	step("taking the LUN away", func(ctx context.Context) error { return d.Unexpose(ctx, made[0].ID) })
	for _, s := range made {
		step("deleting", func(ctx context.Context) error { return d.Delete(ctx, s.ID) })
	}
}

// refusedAs wants one line of a kind, without what was logged in with.
func refusedAs(t *testing.T, d *cinder.Driver, err error, kind driver.Kind, want string) {
	t.Helper()
	if err == nil || d.Kind(err) != kind || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, of kind %v, want %v and %q", err, d.Kind(err), kind, want)
	}
	t.Log(err)
	for ; err != nil; err = errors.Unwrap(err) {
		for _, secret := range []string{"battery", credSecret, "gAAAA"} {
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
				t.Errorf("it tells %q: %+v", secret, err)
			}
		}
	}
}
