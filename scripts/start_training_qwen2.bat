@echo off
rem Qwen2-7B-Instruct learns to write summaries of counselling cases from PsyQA, on Windows; the settings are those of
rem start_training_qwen2.sh. Further flags of main_SFT.py stand behind the command. A killed run goes on when the same
rem command is given again. Variables, as for the launchers of Linux: MODEL, DATA, OUTPUT, VENV (the environment,
rem .venv), PYTHON (an interpreter of 3.11 or newer), GPUS (0 = the CPU) and PROCESSES. As in:
rem   set MODEL=D:\models\Qwen2-7B-Instruct
rem   scripts\start_training_qwen2.bat --num_epochs 2
rem One process trains: PyTorch has no NCCL on Windows, so several GPUs need WSL2 and start_training_qwen2.sh. 4 bits need
rem bitsandbytes and a CUDA GPU; --tuning lora needs neither. vLLM does not run on Windows: inference.py takes hf.
setlocal DisableDelayedExpansion
set "NAME=%~nx0"
cd /d "%~dp0.."
if not %ERRORLEVEL%==0 exit /b 2

if not defined MODEL set "MODEL=models/Qwen2-7B-Instruct"
if not defined DATA set "DATA=data/psyqa"
if not defined OUTPUT set "OUTPUT=outputs/psyqa-Qwen2-7B"
if not defined VENV set "VENV=.venv"
if not defined PROCESSES set "PROCESSES=1"
if not "%PROCESSES%"=="1" set "WHY=PROCESSES=%PROCESSES%: must be 1, Windows trains in one process (several: WSL2)" & goto :stop
if not defined GPUS goto :gpus_known
if "%GPUS%"=="1" goto :gpus_known
if not "%GPUS%"=="0" set "WHY=GPUS=%GPUS%: must be 0 or 1, PyTorch has no NCCL on Windows (several: WSL2)" & goto :stop
set "CUDA_VISIBLE_DEVICES=-1"
:gpus_known

rem an environment of the project's own, made once and reused while requirements.txt stays as it is
set "VENV_PYTHON=%VENV%\Scripts\python.exe"
if not exist "%VENV_PYTHON%" goto :make_environment
if not exist "%VENV%\requirements.copy" goto :install
fc /b requirements.txt "%VENV%\requirements.copy" >nul
if %ERRORLEVEL%==0 goto :environment_ready
goto :install
:make_environment
if defined PYTHON goto :check_python
set "PYTHON=py"
py -3 -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>nul
if not %ERRORLEVEL%==0 set "PYTHON=python"
:check_python
"%PYTHON%" -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>nul
if not %ERRORLEVEL%==0 set "WHY=Python 3.11 or newer is needed, and %PYTHON% is none: get it from python.org, or name it with set PYTHON=C:\path\to\python.exe" & goto :stop
echo setting up "%VENV%" (once; a few minutes)
"%PYTHON%" -m venv "%VENV%"
if not %ERRORLEVEL%==0 set "WHY=VENV=%VENV%: no environment could be made there" & goto :stop
:install
"%VENV_PYTHON%" -m pip install --disable-pip-version-check -r requirements.txt
if not %ERRORLEVEL%==0 set "WHY=pip could not install requirements.txt into %VENV%" & goto :stop
copy /b /y requirements.txt "%VENV%\requirements.copy" >nul
if not %ERRORLEVEL%==0 exit /b 2
:environment_ready

rem 4 bits are the default; another --tuning needs nothing of what is checked here
"%VENV_PYTHON%" -c "import sys; words = ' '.join(sys.argv).replace('=', ' ').split(); sys.exit('--tuning' in words and 'qlora' not in words)" %*
if not %ERRORLEVEL%==0 goto :tuning_known
"%VENV_PYTHON%" -c "import bitsandbytes" >nul 2>nul
if not %ERRORLEVEL%==0 set "WHY=bitsandbytes cannot be imported, and 4 bits need it; without it: %NAME% --tuning lora" & goto :stop
"%VENV_PYTHON%" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" >nul 2>nul
if not %ERRORLEVEL%==0 set "WHY=PyTorch sees no CUDA GPU, and 4 bits need one here: install its CUDA build (pytorch.org; that of pip is for the CPU), or train without: %NAME% --tuning lora" & goto :stop
:tuning_known

rem find_data says what is missing, and how to get it
"%VENV_PYTHON%" -m scripts.find_data --name psyqa --model "%MODEL%" --folder "%DATA%" --output_dir "%OUTPUT%" >nul
if not %ERRORLEVEL%==0 exit /b 2
"%VENV_PYTHON%" main_SFT.py --model_path "%MODEL%" --task emotion-summary --train_data_path "%DATA%/train/Emotion_Summary.jsonl" --dev_data_path "%DATA%/validation/Emotion_Summary.jsonl" --output_dir "%OUTPUT%" %*
if not %ERRORLEVEL%==0 exit /b %ERRORLEVEL%

echo The adapter is in "%OUTPUT%". To write summaries, and to score those of the test cases (--load_in_4bit saves memory):
echo   "%VENV_PYTHON%" inference.py --model_path "%OUTPUT%" --test_data_path "%DATA%/test/Emotion_Summary.jsonl"
exit /b 0

:stop
setlocal EnableDelayedExpansion
>&2 echo !NAME!: error: !WHY!
exit /b 2
