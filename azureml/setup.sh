#!/bin/bash
# Creation script of a compute instance: the project in an environment of its own, and a Jupyter kernel of it.
# AzureML runs it once, as root and without a terminal, in the folder of the workspace's files where it lies. It may run again.
set -euo pipefail
repository=$(dirname "$PWD")
[ -f "$repository/constraints.txt" ] || { echo "setup.sh must run in the folder azureml of the repository, not in $PWD" >&2; exit 1; }

sudo -H -u "${CI_LOCAL_UBUNTU_USER:-azureuser}" bash -s "$repository" <<'EOF'
set -euo pipefail
cd "$1"
home=$HOME/orcalab-env  # on the instance's own disk; the workspace's files are a network share, too slow for an environment
export PATH=$PATH:/anaconda/bin
[ -x "$home/bin/python" ] || conda create -q -y -p "$home" python=3.11 pip
"$home/bin/python" -m pip install -q -c constraints.txt -e .
"$home/bin/python" -m ipykernel install --user --name orcalab --display-name "orcalab"
EOF
echo "the kernel orcalab is there"
