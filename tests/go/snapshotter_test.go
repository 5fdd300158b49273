// SPDX-License-Identifier: Apache-2.0

// Runs containerd's own suite of snapshotters against ours, through containerd's own client.
//
// FIRSTREAD is the command to test, FIRSTREAD_SCRATCH a directory on ext4, xfs or btrfs.
package tests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	address := filepath.Join(root, "s.sock")
	command := exec.Command(os.Getenv("FIRSTREAD"), "snapshotter", "--address", address,
		"--root", filepath.Join(root, "root"), "--run-dir", filepath.Join(root, "run"))
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(address); err == nil {
			break
		} else if time.Now().After(end) {
			return nil, nil, fmt.Errorf("the snapshotter does not start: %w", err)
		}
	}
	connection, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	stop := func() error {
		connection.Close()
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return command.Wait()
	}
	client := snapshotsapi.NewSnapshotsClient(connection)
	return proxy.NewSnapshotter(client, "firstread"), stop, nil
}

func TestSnapshotter(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	if os.Getenv("FIRSTREAD") == "" {
		t.Skip("FIRSTREAD names no command to test")
	}
	// The name says what the suite may expect of renamed directories.
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}
